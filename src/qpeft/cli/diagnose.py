"""`qpeft diagnose`: measurements of a circuit, before and after training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import CircuitOption, find_adapter, use_files
from qpeft.cli.command import command
from qpeft.cli.compare_bar import CompareBar, say_failures
from qpeft.cli.console import Answer, facts, table, working
from qpeft.cli.failures import SOME_FAILED
from qpeft.cli.method import AdapterOptions, GeneratorOptions, PresetOption, SetOption, method_settings
from qpeft.cli.options import Fields
from qpeft.cli.plan import plan_of
from qpeft.errors import ConfigError
from qpeft.files import output_file
from qpeft.training.settings import HIGHEST_SEED, TrainSettings
from qpeft.user_files import is_file

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.diagnostics.finding import Diagnosis
    from qpeft.diagnostics.retraining import CircuitMatters
    from qpeft.diagnostics.target import Target

PAGE = "diagnose.html"
_MATTERS = "Does the circuit matter?"


@dataclass(kw_only=True)
class TrainingRuns:
    """Options of the training runs."""

    seeds: tuple[int, ...] = field(
        default=(0, 1, 2), metadata={"help": "Seeds of each variant; a verdict needs three."}
    )
    steps: int | None = field(default=None, metadata={"help": "Steps of each training run. Default: those of the run."})


@command
def diagnose(
    target: Annotated[
        Path | None,
        typer.Argument(metavar="TARGET", help="Run folder or adapter folder. Or pass --model."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID|PATH", help="Base model: diagnose a config, before training, instead of a folder."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=10,
            max=10**6,
            help="Random circuits for each measurement, and ten times as many pairs of states.",
        ),
    ] = 200,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=HIGHEST_SEED, help="Seed of the random circuits.")] = 0,
    circuit: CircuitOption = 1,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Write a page with charts. Default: {PAGE} in a run folder, otherwise none."
        ),
    ] = None,
    trainings: Annotated[
        bool,
        typer.Option(
            "--trainings",
            metavar="",
            help="Repeat the training run with its circuit, and with frozen angles, a free vector, noise, or nothing in"
            " place of the circuit. Run the same command again to resume.",
            rich_help_panel=_MATTERS,
        ),
    ] = False,
    *,
    members: Annotated[dict[str, Any], Fields(TrainingRuns, panel=_MATTERS)],
    run: Annotated[
        dict[str, Any],
        Fields(
            TrainSettings,
            panel="With --model; --trust-remote-code, and FILE.py:NAME in --method and --ansatz, also with a folder",
            only=("method", "host", "task", "trust_remote_code"),
        ),
    ],
    adapter: AdapterOptions,
    generator: GeneratorOptions,
    preset: PresetOption = None,
    others: SetOption = None,
) -> Answer:
    """Measure whether a circuit is random, redundant and trainable, whether it moved, and whether it matters.

    The target is a run folder, an adapter folder, or a config with its initial values. The weights of the base model
    are not read. Measurements that a wide circuit does not allow are listed as left out.

    Examples:

      qpeft diagnose run
      qpeft diagnose run --trainings --seeds 0,1,2 --steps 60
      qpeft diagnose my-adapter --html my-adapter.html
      qpeft diagnose --model gpt2 --r 4 --budget 0.5 --n-layers 16
    """
    if target is not None:
        given = {"method": run, "ansatz": generator}
        files = {name: place.pop(name) for name, place in given.items() if is_file(place.get(name))}
        use_files(files.get("method"), files.get("ansatz"))
        if trainings:
            members |= {name: value for name, value in files.items() if name == "ansatz"}
    if trainings and "trust_remote_code" in run:
        members = {**members, "trust_remote_code": run.pop("trust_remote_code")}
    asked = {
        **run,
        **adapter,
        **generator,
        **({} if preset is None else {"preset": preset}),
        **({"set": others} if others else {}),
    }
    _check(target, model, asked, trainings, members)
    if html is not None:
        output_file(html)
    found = _config(str(model), run, adapter, generator, preset, others) if target is None else _folder(target)
    found = found.with_circuit(circuit)
    trained = _training_runs(found, trainings, members)
    with working("Measuring") as tell:
        import torch

        from qpeft.diagnostics.diagnosis import diagnose as measure

        torch.set_num_threads(1)  # thousands of circuits, each too small for several threads
        diagnosis = measure(found, samples, seed, trained, tell)
    page = html or (None if found.run is None else found.run / PAGE)
    if page is not None:
        from qpeft.diagnostics.page import write_page

        if html is None and page.is_symlink():
            page.unlink()  # a link in a folder from someone else is not followed
        write_page(diagnosis, page)
    failed = trained is not None and bool(trained.failures)
    return Answer(
        {**diagnosis.to_dict(), "page": page},
        lambda console: _show(console, diagnosis, page),
        exit_code=SOME_FAILED if failed else 0,
    )


def _check(
    target: Path | None, model: str | None, asked: dict[str, Any], trainings: bool, members: dict[str, Any]
) -> None:
    """Refuse arguments that exclude each other."""

    def flags(names: dict[str, Any]) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names)

    if (target is None) == (model is None):
        raise ConfigError(
            "give either a run folder or an adapter folder, or --model for a config before training; one of them"
        )
    if target is not None and asked:
        raise ConfigError(f"{flags(asked)}: not an option for {target}, which has its own config; use it with --model")
    if members and not trainings:
        raise ConfigError(f"{flags(members)}: only with --trainings; add --trainings or leave them out")
    if trainings and target is None:
        raise ConfigError("--trainings needs data: train the config with qpeft train, then diagnose its run folder")


def _folder(path: Path) -> Target:
    from qpeft.diagnostics.target import of_folder

    folder = find_adapter(path)
    is_run = folder != path and (path / "config.json").is_file()
    return of_folder(folder, path if is_run else None, str(path))


def _config(
    model: str,
    run: dict[str, Any],
    adapter: dict[str, Any],
    generator: dict[str, Any],
    preset: str | None,
    others: list[str] | None,
) -> Target:
    settings = TrainSettings(model=model, data="", out="", **run)
    settings.method_settings = method_settings(settings, preset, adapter, generator, others)
    settings.check()
    with working("Counting"):
        from qpeft.diagnostics.target import of_config
        from qpeft.training.methods import build_config, build_generator

        plan = plan_of(settings, None)
        return of_config(build_generator(settings) or build_config(settings), plan, f"{settings.method} on {model}")


def _training_runs(found: Target, wanted: bool, members: dict[str, Any]) -> CircuitMatters | None:
    """The results of the training runs: run now if `wanted`, otherwise those of an earlier call; None without any."""
    if found.run is None:
        if wanted:
            raise ConfigError(f"--trainings needs the data of a run; {found.name} is not a run folder of qpeft train")
        return None
    from qpeft.diagnostics.retraining import circuit_matters, found_before

    if not wanted:
        return found_before(found.run)
    with CompareBar() as bar:
        return circuit_matters(found.run, **members, progress=bar)


def _show(console: Console, diagnosis: Diagnosis, page: Path | None) -> None:
    console.print(f"Diagnosis of {diagnosis.name}\n", style="bold", soft_wrap=True)
    console.print(facts([(name, value, "") for name, value in diagnosis.facts]))
    for number, finding in enumerate(diagnosis.findings, 1):
        console.print(f"\n{number}. {finding.question}", style="bold")
        names = (
            ("replacement", "minus the circuit", "verdict") if finding.key == "matters" else ("", "value", "reference")
        )
        if finding.values:
            console.print(table(names, finding.values))
        for sentence in finding.sentences:
            console.print(sentence)
        for reason in finding.left_out:
            console.print(f"Left out: {reason}.", style="dim")
    if (runs := diagnosis.training_runs) is not None:
        say_failures(runs.failures)
        console.print(f"report  {runs.folder / 'report.html'}", soft_wrap=True)
    if page is not None:
        console.print(f"\npage  {page}", soft_wrap=True)
