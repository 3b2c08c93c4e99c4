"""`qpeft train`: fine-tune in a run folder, which resumes after any interruption."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qpeft.checks import option
from qpeft.errors import ConfigError, QpeftError
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, TrainingBar, bars, facts, line, say, size, stderr
from qpeft_lab.cli.method import BackendOptions, MethodOptions
from qpeft_lab.cli.options import Fields, flag
from qpeft_lab.cli.suggestion import Budget, check_frames, settled, show_suggestion
from qpeft_lab.settings import NEEDED, RunSettings, read_settings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.training.run_folder import TrainResult


@command
def train(
    *,
    config: Path | None = option(
        None,
        "YAML file with fields of the run, named as in Python. Options override it.",
        metavar="FILE",
    ),
    run: Annotated[dict[str, Any], Fields(RunSettings, is_complete=False)],
    method: MethodOptions,
    budget: Budget,
    backend: BackendOptions,
    push_to_hub: str | None = option(
        None,
        "After the run, upload its adapter to this model repository of the Hugging Face Hub, with a"
        " card that has the scores. As qpeft export --push-to-hub.",
        metavar="REPO",
        panel="Upload",
    ),
) -> Answer:
    """Fine-tune a model. Run the same command again to resume an interrupted run.

    The run folder holds the compact adapter, the exported adapter that loads with PEFT alone, and
    all losses and scores in metrics.jsonl. Classifications report the accuracy with its 95 %
    confidence interval.

    Examples:

      qpeft train --model embedded --data numpy-docs --steps 70 --out run
      qpeft train --config run.yaml --steps 1000
      qpeft train --model gpt2 --data text.txt --method auto --parameters 5000 --out run
      qpeft train --model roberta-base --data reviews.tsv --out run \\
          --task text-classification
    """
    if config is not None:
        run, method, backend = _merged(config, run, method, backend)
    if missing := [name for name in NEEDED if name not in run]:
        raise ConfigError(
            f"{', '.join(map(flag, missing))} missing; give it here, or in a file with --config"
        )
    if push_to_hub is not None:
        from qpeft_lab.training.hub import check_repository

        check_repository(push_to_hub)
    settings, suggestion = settled(run, method, backend, budget)
    if suggestion is not None:
        check_frames(suggestion, run)
        show_suggestion(stderr(), suggestion)
    from qpeft_lab.training.fit import train as fine_tune

    with bars() as shown:
        result = fine_tune(settings, TrainingBar(shown, settings.method))
    data = result.to_dict() | ({} if suggestion is None else {"suggestion": asdict(suggestion)})
    url = None
    if push_to_hub is not None:
        url = data["url"] = _uploaded(result, push_to_hub)
    return Answer(data, lambda console: _show(console, result, url))


def _uploaded(result: TrainResult, repository: str) -> str:
    """The address of the repository with the adapter of a finished run.

    Raises QpeftError if PEFT alone cannot load the adapter, or the upload fails.
    """
    from qpeft.core.checkpoint import CONFIG
    from qpeft_lab.training.hub import upload
    from qpeft_lab.training.run_folder import RunFolder

    if not (result.exported / CONFIG).is_file():
        raise QpeftError(
            f"the run in {result.out} is finished, but nothing was uploaded: PEFT alone cannot load"
            f" what {result.method} trains"
        )
    with stderr().status("Uploading"):
        return upload(result.exported, result.adapter, RunFolder(result.out), repository)


def _merged(path: Path, *given: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The fields of the run, the method and the backend in a file, and the options, which override
    them.
    """
    of_run = read_settings(path)
    in_file = (of_run, of_run.pop("method_settings", {}), of_run.pop("backend_settings", {}))
    for limit, other in (("steps", "epochs"), ("epochs", "steps")):
        if limit in given[0] and of_run.get(other) is not None:
            say(
                "Note:",
                f"{flag(limit)} {given[0][limit]} replaces {other}: {of_run.pop(other)} of {path}",
            )
    for options, values in zip(given, in_file, strict=True):
        for name in options:
            if name in values and options[name] != values[name]:
                say(
                    "Note:",
                    f"{flag(name)} {options[name]} overrides {name}: {values[name]} of {path}",
                )
    return tuple(values | options for options, values in zip(given, in_file, strict=True))


def _show(console: Console, result: TrainResult, url: str | None) -> None:
    from qpeft import methods
    from qpeft.core.model_card import load_lines
    from qpeft_lab.training.classifier import how_to_load

    if result.already_finished:
        line(console, f"{result.out} is finished; nothing was trained. Its result:\n", "bold")
    head = (
        f" ({result.trainable_head:,} in the classification head)" if result.trainable_head else ""
    )
    exported = (
        f"exported: {size(result.exported_bytes)}" if result.has_stock_form else "needs qpeft"
    )
    rows: list[tuple[Any, ...]] = []
    for when, score in (("before", result.before), ("after", result.after)):
        name, best = score.headline
        _, *others, (unit, loss) = score.described().items()
        rows.append((f"{name} {when}", best, ", ".join((f"{loss} {unit}", *map(" ".join, others)))))
    rows += [
        ("trainable", result.trainable, f"parameters{head}"),
        ("deployed", result.deployed, "parameters at inference, in addition to the base"),
        ("weights file", size(result.stored_bytes or result.exported_bytes), exported),
    ]
    if (used := result.circuits) is not None:
        shots = f", {used['shots']:,} shots" if used["shots"] else ""
        where = f"on {used['backend']} in {used['jobs']:,} jobs{shots}, {used['seconds']:.1f} s"
        rows.append(("circuits", used["circuits"], where))
    per_step = (
        ""
        if result.seconds_per_step is None
        else f"median {result.seconds_per_step:.3g} s per step"
    )
    rows.append(("time", f"{result.seconds:.1f} s", per_step))
    if url is not None:
        rows.append(("uploaded to", url, ""))
    console.print(facts(rows))
    if result.after.loss > result.before.loss:
        line(
            console,
            "\nNote: the loss is higher than before training; try a lower --lr or other data",
        )
    if not result.adapter.is_dir():
        line(console, f"\nThe model and its tokenizer or image processor: {result.exported}")
        return
    is_stock = result.has_stock_form
    folder = result.exported if is_stock else result.adapter
    registered = None if is_stock else methods.get(result.method).config_class
    line(console, f"\n{folder} loads with {'PEFT alone' if is_stock else 'qpeft'}:\n")
    line(
        console,
        load_lines(result.model, str(folder.resolve()), registered, **how_to_load(folder)),
        "cyan",
    )
