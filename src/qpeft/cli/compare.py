"""`qpeft compare run | plan | report`: compare methods under equal conditions."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import TrustRemoteCode
from qpeft.cli.command import application, command
from qpeft.cli.compare_bar import CompareBar, say_failures
from qpeft.cli.console import Answer, count, facts, print_code, say, size, table, working
from qpeft.cli.failures import SOME_FAILED
from qpeft.cli.options import Fields
from qpeft.compare import BUILT_IN, RECIPES
from qpeft.errors import ConfigError, setting

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.compare.analysis.types import MethodSummary, Summary
    from qpeft.compare.plan import Plan
    from qpeft.compare.resolved import ResolvedMember, ResolvedMethod, ResolvedStudy
    from qpeft.compare.rows import Row

_TRAINING = ("steps", "epochs", "batch_size", "seq_len", "prompt_column", "completion_column")
_DOTTED = {name: f"training.{name}" for name in _TRAINING}


def _option(text: str, **metadata: Any) -> Any:
    return field(default=None, metadata={"help": text, **metadata})


@dataclass(kw_only=True)
class StudyOptions:
    """Options that replace a field of the study; None: the study's own."""

    task: str | None = _option("As for train; the built-in studies have task causal-lm.", metavar="NAME")
    base: str | None = _option("Base model: a Hub id, a folder, or `embedded`, the model inside qpeft.")
    data: str | None = _option("Training data, as for train. Without the next two options, parts of it are held out.")
    eval_data: str | None = _option("Validation data, for choosing learning rates and checkpoints.")
    test_data: str | None = _option("Test data, read once per run, at its end.")
    steps: int | None = _option("Optimizer steps of every run.")
    epochs: float | None = _option("Passes over the training data in every run, instead of a number of steps.")
    batch_size: int | None = _option("Examples or blocks of text per step.")
    seq_len: int | None = _option("Tokens per block of text.")
    prompt_column: str | None = _option("Column of the prompts, which are not scored.")
    completion_column: str | None = _option("Column of the answers.")
    seeds: tuple[int, ...] | None = _option("Seeds of the final runs, such as 0,1,2,3,4.")
    lr_scale: float | None = _option("Factor for every learning rate: another base may need other ones.")
    max_hours: float | None = _option("Refuse to start a study that is estimated to take longer.")


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help=f"A study file (YAML), {', '.join(RECIPES)}, or {', '.join(BUILT_IN)}.",
    ),
]
Overrides = Annotated[dict[str, Any], Fields(StudyOptions, panel="Study")]


@command
def run(
    study: StudyArgument,
    overrides: Overrides,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of this study: rows, tables, report.")],
    workers: Annotated[int, typer.Option(metavar="N", help="Runs in parallel. Times are measured one at a time.")] = 1,
    threads: Annotated[
        int, typer.Option(metavar="N", help="CPU threads per run. The number affects the last digits of results.")
    ] = 1,
    executor: Annotated[
        str, typer.Option(metavar="local|ray", help="This machine, or the Ray cluster at RAY_ADDRESS.")
    ] = "local",
    retry: Annotated[
        str | None, typer.Option(metavar="STATUS,...", help="Run cells of this status again: failed, oom, timeout.")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of another study: its identical cells are not run again.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop a run that takes longer.")] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            metavar="",
            help="Only test whether every method runs: two steps on a small random base of the same architecture and "
            "invented data. Nothing is downloaded, and the values mean nothing.",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Train every method with every seed under equal conditions, measure, and write a report.

    Each method first tries a few learning rates on validation data, then trains with every seed at the best one. Time
    and memory are measured at the end, one method at a time. Every cell is a separate process: if one fails, its row
    records the failure and the others continue. Run the same command again to resume. Exit code 3: some cells failed;
    the report is still written.

    Examples:

      qpeft compare run survey --out survey
      qpeft compare run controls --seeds 0,1,2 --steps 60 --out quick
      qpeft compare run survey --base gpt2 --data text.txt --workers 4 --out gpt2-survey
      qpeft compare run my-study.yaml --out mine --retry failed,timeout
    """
    names = tuple(name.strip() for name in (retry or "").split(",") if name.strip())
    with working("Preparing the study"):
        command = _command(study, overrides, out, *(["--smoke"] if smoke else []))
        plan = _plan(study, overrides, out, command, trust_remote_code, runs=True, smoke=smoke)
        if not smoke:
            _refuse_long(plan, workers)
    from qpeft.compare.runner import run as run_plan

    with CompareBar() as bar:
        outcome = run_plan(plan, workers, bar, executor, names, timeout, reuse, threads)
    data = {"n_done": outcome.n_done, "n_skipped": outcome.n_skipped, **_data(out, outcome.summary, outcome.failures)}
    return Answer(
        data,
        lambda console: _show(console, out, outcome.summary, outcome.failures),
        exit_code=SOME_FAILED if outcome.failures else 0,
    )


@command
def plan(
    study: StudyArgument,
    overrides: Overrides,
    examples_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            min=1e-9,
            help="Compute the hours at this speed of training instead of timing steps: no weights are read. An example "
            "is a block of text, a row or an image.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Show what a study would run: cells, parameters, learning rates, memory, hours. Nothing is trained or written.

    Examples:

      qpeft compare plan survey
      qpeft compare plan rank-perplexity --base gpt2 --data text.txt --json
      qpeft compare plan recipes/qpa-gpt2-wikitext2.yaml --examples-per-second 50
    """
    with working("Preparing the study"), tempfile.TemporaryDirectory() as folder:
        command = _command(study, overrides, Path(Path(study).stem))
        found = _plan(study, overrides, Path(folder) / "study", command, trust_remote_code, runs=False)
        cells = {"tuning": found.tuning_cells({}), "final": found.final_cells({}), "cost": found.cost_cells({})}
        n_cells = {name: len(phase) for name, phase in cells.items()}
        n_trials = found.most_tuning_cells({})
        hours, memory = found.estimate(examples_per_second), found.least_memory()
    data = {
        "study": found.study.model_dump(),
        "cells": n_cells,
        "most_trials": n_trials,
        "hours": hours,
        "least_memory": memory,
    }
    return Answer(data, lambda console: _show_plan(console, found.study, n_cells, n_trials, hours, memory))


@command
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of a compare run.")],
) -> Answer:
    """Write tables, charts and the report again from the rows. Cells without a row are marked as missing.

    Example:

      qpeft compare report survey
    """
    with working("Writing the report"):
        from qpeft.compare.report.files import write_outputs
        from qpeft.compare.runner import is_failure

        summary = write_outputs(folder)
    failures = [row for row in summary.failures if is_failure(row)]
    return Answer(_data(folder, summary, failures), lambda console: _show(console, folder, summary, failures))


def compare() -> None:
    """Compare methods under equal conditions: same data, steps and tuning; seeds, intervals, controls, a report.

    Start with:

      qpeft compare plan survey
      qpeft compare run survey --out survey
      qpeft compare report survey
    """


def group() -> typer.Typer:
    """The commands of `qpeft compare`."""
    return application(compare, (run, plan, report), no_args_is_help=True)


def _plan(
    study: str,
    overrides: dict[str, Any],
    folder: Path,
    command: str,
    trust_remote_code: bool,
    *,
    runs: bool,
    smoke: bool = False,
) -> Plan:
    from qpeft.compare.study_file import code_of, load_study

    code = code_of(study)
    for part, name in ((part, name) for part, names in code.items() for name in names):
        when = "" if runs or part != "backend" else "in `compare run`, not in this plan, "
        say("Note:", f"the study {when}executes the code in {name.rpartition(':')[0]}", "bold yellow")
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    found = load_study(study, {_DOTTED.get(key, key): value for key, value in values.items()})
    from qpeft.compare.plan import make_plan  # imports that take seconds, not needed to report a misspelled field

    if smoke:
        from qpeft.compare.smoke import smoke_test

        found = smoke_test(found, folder)
    return make_plan(found, folder, command, trust_remote_code)


def _command(study: str, overrides: dict[str, Any], out: Path, *flags: str) -> str:
    """The command that reproduces the rows; how many run in parallel, and where, is left out."""
    words = ["qpeft", "compare", "run", study]
    for key, value in overrides.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return shlex.join([*words, *flags, "--out", str(out)])


def _refuse_long(plan: Plan, workers: int) -> None:
    phases, most = plan.estimate(), plan.study.max_hours
    hours = (phases["tuning"] + phases["final"]) / workers + phases["cost"]
    if hours > most:
        remedy = f"Reduce steps, seeds or methods, or raise {setting('max_hours')}."
        raise ConfigError(f"The planned time of {hours:.1f} h exceeds {setting('max_hours')}={most:g}. {remedy}")


def _data(folder: Path, summary: Summary, failures: list[Row]) -> dict[str, Any]:
    return {
        "out": folder,
        "report": folder / "report.html",
        "rows": folder / "results.jsonl",
        "methods": [_method(method) for method in summary.methods],
        "blocks": [asdict(block) for block in summary.blocks],
        "sentences": summary.sentences,
        "limits": summary.limits,
        "failures": [
            {key: getattr(row, key) for key in ("cell_id", "status", "error_type", "error_msg")} for row in failures
        ],
    }


def _method(method: MethodSummary) -> dict[str, Any]:
    found = asdict(method)
    found["figures"] = found.pop("measurements")  # the key of release 0.1
    return {**found, "cost": method.cost.to_json()}


def _show(console: Console, folder: Path, summary: Summary, failures: list[Row]) -> None:
    """The report's tables of results with fewer columns, and remarks on standard error."""
    from qpeft.compare.analysis.limits import left_out, noisy_costs
    from qpeft.compare.analysis.sentences import edges
    from qpeft.compare.report import tables

    console.print(f"{summary.study.title}\n", style="bold")
    found = [
        tables.results(summary),
        tables.published(summary),
        tables.controls(summary),
        *(tables.block(b, summary) for b in summary.blocks),
    ]
    for shown in (shown for shown in found if shown.rows):
        console.print(table(*tables.brief(shown), title=shown.caption))
    for method in summary.methods:
        for flag in (flag for flag in method.flags if flag.startswith(("did not", "no improvement"))):
            say("Note:", f"{method.key}: {flag}", "bold yellow")
    for note in (edges(summary), *left_out(summary), noisy_costs(summary)):
        if note:
            say("Note:", note, "bold yellow")
    say_failures(failures)
    console.print(f"report  {folder / 'report.html'}", soft_wrap=True)
    console.print(f"rows    {folder / 'results.jsonl'}", soft_wrap=True)


def _show_plan(
    console: Console, study: ResolvedStudy, n_cells: dict[str, int], n_trials: int, hours: dict[str, float], memory: int
) -> None:
    console.print(f"{study.title}\n{study.question}\n")
    members = {member.key: member for block in study.blocks for member in block.members}
    rows = [
        (
            method.key,
            count(method.trainable),
            count(method.deployed),
            " ".join(f"{rate:g}" for rate in method.rates) or "-",
            _role(method, members.get(method.key)),
        )
        for method in study.methods
    ]
    console.print(table(("Method", "Trainable", "Deployed", "Learning rates", "Role"), rows))
    length, steps = study.training.epochs, count(study.training.steps)
    epochs = [] if length is None else [("epochs of the training data", f"{length:g}", f"{steps} steps")]
    what = {"tuning": "trials of learning rates", "final": "final runs", "cost": "measurements of time and memory"}
    numbers, up_to = {name: str(n) for name, n in n_cells.items() if n}, ""
    if n_trials > n_cells["tuning"]:  # grids extend themselves
        numbers["tuning"], up_to = f"{n_cells['tuning']} to {n_trials}", "up to "
    starts = {"tuning": f"{up_to}about"}
    phases = [(what[name], n, f"{starts.get(name, 'about')} {_hours(hours[name])}") for name, n in numbers.items()]
    console.print(facts([*epochs, *phases, ("memory", size(memory), "or more: without activations")]))
    total, most = sum(hours.values()), study.max_hours
    console.print(f"\nIn total {up_to}about {_hours(total)} with one worker; max_hours is {most:g}. To run it:\n")
    print_code(console, study.command)


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"


def _role(method: ResolvedMethod, member: ResolvedMember | None) -> str:
    if method.role == "control":
        return f"control of {method.against}"
    if method.role != "equal_budget" or member is None:
        return ""
    return f"{member.ratio:.0%} of a budget{'' if member.ranked else ', not ranked'}"
