"""`qpeft compare run | plan | report`: compare methods under equal conditions."""

from __future__ import annotations

import shlex
import tempfile
import time
from dataclasses import make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.checks import option
from qpeft.errors import ConfigError, InputError
from qpeft_lab.cli.command import SOME_FAILED, application, command
from qpeft_lab.cli.console import Answer, bars, duration, facts, line, listed, say, stderr, table
from qpeft_lab.cli.options import ALIASES, Fields, flag, needed
from qpeft_lab.compare import BUILT_IN, RECIPES
from qpeft_lab.compare.rows import ROWS, Row, cell_id, is_failure
from qpeft_lab.compare.study import Study, code_of, load_study
from qpeft_lab.progress import CompareProgress
from qpeft_lab.settings import RunSettings, SharedSettings

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console

    from qpeft_lab.compare.cell import Cell
    from qpeft_lab.compare.cell_progress import Reached
    from qpeft_lab.compare.plan import Plan
    from qpeft_lab.compare.summary import Summary

_WORTH_A_LINE = 20.0  # seconds that are left of a run
_STUDY = needed(
    f"A study file (YAML), {', '.join(RECIPES)}, or {', '.join(BUILT_IN)}.",
    metavar="STUDY",
    argument=True,
)
_OF_STUDY = [(name, Study.model_fields[name]) for name in ("test_data", "seeds", "lr_scale")]
_STUDY_OPTIONS = [
    (name, field.annotation, option(None, str(field.description))) for name, field in _OF_STUDY
]
# instead of the study's own
OfRun = Annotated[dict[str, Any], Fields(SharedSettings, is_complete=False)]
OfStudy = Annotated[
    dict[str, Any],
    Fields(make_dataclass("StudyOptions", _STUDY_OPTIONS)),
    Fields(RunSettings, only=("trust_remote_code",)),
]


@command
def run(
    *,
    study: str = _STUDY,
    out: Path = needed("Folder of this study: rows, tables, report.", metavar="DIR"),
    workers: int = option(1, "Runs in parallel. Times are measured one at a time.", at_least=1),
    threads: int = option(
        1, "CPU threads per run. The number affects the last digits of results.", at_least=1
    ),
    executor: str = option(
        "local", "This machine, or the Ray cluster at RAY_ADDRESS.", choices=("local", "ray")
    ),
    retry: str | None = option(None, "Run failed cells again.", choices=("failed",)),
    smoke: bool = option(
        False,
        "Only test whether every method runs: two steps on a small random base of the same"
        " architecture and invented data. Nothing is downloaded, and the values mean nothing.",
    ),
    of_run: OfRun,
    of_study: OfStudy,
) -> Answer:
    """Train every method with every seed under equal conditions, measure, and write a report.

    Each method first tries a few learning rates on validation data, then trains with every seed at
    the best one. Time and memory are measured at the end, one method at a time. Every cell is a
    separate process: if one fails, its row records the failure and the others continue. Run the
    same command again to resume. Exit code 3: some cells failed; the report is still written.
    Options of a run, such as --model and --steps, replace those of the study; --base is another
    name of --model.

    Examples:

      qpeft compare run survey --out survey
      qpeft compare run survey --model gpt2 --data text.txt --workers 4 --out gpt2-survey
      qpeft compare run my-study.yaml --out mine --retry failed
    """
    from qpeft_lab.compare.runner import run as run_plan

    with stderr().status("Preparing the study"):
        plan = _plan(study, of_run, of_study, out, out, smoke)
    with bars() as shown:
        outcome = run_plan(plan, workers, CompareBar(shown), executor, retry is not None, threads)
    data = {"n_done": outcome.n_done, "n_skipped": outcome.n_skipped}
    return _reported(out, out / ROWS, outcome.summary, outcome.failures, data)


@command
def plan(
    *,
    study: str = _STUDY,
    of_run: OfRun,
    of_study: OfStudy,
) -> Answer:
    """Show what a study would run: cells, parameters, learning rates, and the hours that it takes on
    this machine. Two steps of the reference are timed; nothing is written.

    Examples:

      qpeft compare plan survey
      qpeft compare plan rank-perplexity --model gpt2 --data text.txt --json
    """
    with stderr().status("Preparing the study"), tempfile.TemporaryDirectory() as folder:
        planned = _plan(study, of_run, of_study, Path(folder) / "study", Path(Path(study).stem))
        cells = {
            "tuning": planned.tuning_cells({}),
            "final": planned.final_cells({}),
            "cost": planned.cost_cells({}),
        }
        data = {
            "study": planned.study.model_dump(),
            "cells": {name: len(phase) for name, phase in cells.items()},
            "forecast": _forecast(planned),
        }
    return Answer(data, lambda console: _show_plan(console, planned, data))


@command
def report(
    *,
    folder: Path = needed(
        "The --out folder of a compare run, or a file in results/.", metavar="DIR", argument=True
    ),
) -> Answer:
    """Write tables, charts and the report again from the rows. Cells without a row are marked as
    missing.

    Example:

      qpeft compare report survey
    """
    with stderr().status("Writing the report"):
        from qpeft_lab.compare.report import write_outputs

        out = folder
        if folder.is_file():
            out = folder.with_name(folder.name.removesuffix(".xz").removesuffix(".jsonl"))
            if (out / ROWS).exists():
                raise ConfigError(
                    f"{out} is the folder of a study, whose report would be replaced by that of"
                    f" {folder}; give the rows another name"
                )
        summary = write_outputs(folder, out)
    rows = folder if folder.is_file() else folder / ROWS
    return _reported(out, rows, summary, [row for row in summary.failures if is_failure(row)])


def compare() -> None:
    """Compare methods under equal conditions: same data, steps and tuning; seeds, intervals,
    controls, a report.

    Start with:

      qpeft compare plan survey
      qpeft compare run survey --out survey
      qpeft compare report survey
    """


def group() -> typer.Typer:
    """The commands of `qpeft compare`."""
    return application(
        (run, plan, report), compare, {**ALIASES, "base": "model"}, no_args_is_help=True
    )


def _plan(
    study: str,
    of_run: dict[str, Any],
    of_study: dict[str, Any],
    folder: Path,
    out: Path,
    smoke: bool = False,
) -> Plan:
    """The plan of a study in `folder`, with the command that reproduces its rows in `out`."""
    for name in code_of(study):
        say("Note:", f"the study executes the code in {name.rpartition(':')[0]}", "bold yellow")
    overrides = {f"run.{name}": value for name, value in of_run.items()} | of_study
    trusted = overrides.pop("trust_remote_code", False)
    loaded = load_study(study, overrides)
    # takes seconds to import, and is not needed to report a misspelled field
    from qpeft_lab.compare.plan import make_plan

    words = ["qpeft", "compare", "run", study]  # how many run in parallel, and where, is left out
    for name, value in {**of_run, **of_study}.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += [flag(name)] if value is True else [flag(name), text]
    if smoke:
        from qpeft_lab.compare.smoke import smoke_test

        words.append("--smoke")
        loaded = smoke_test(loaded, folder)
    return make_plan(loaded, folder, shlex.join([*words, "--out", str(out)]), trusted)


def _reported(
    folder: Path,
    rows: Path,
    summary: Summary,
    failures: list[Row],
    data: dict[str, Any] | None = None,
) -> Answer:
    """The results of a study with their outputs in `folder`; exit code 3 if a cell of its run
    failed.
    """
    from qpeft_lab.compare import report as page

    answer: dict[str, Any] = {
        **(data or {}),
        "out": folder,
        "report": folder / "report.html",
        "rows": rows,
        "answers": summary.answers,
        "limits": summary.limits,
        "methods": [
            page.line_of_method(result, summary) | {"settings": result.method.settings}
            for result in summary.results
        ],
        "failures": [
            {
                "cell_id": cell_id(row),
                "status": row["status"],
                "error_type": row.get("error_type"),
                "error": row.get("error"),
            }
            for row in failures
        ],
    }

    def show(console: Console) -> None:
        console.print(f"{summary.study.title}\n", style="bold")
        for answer in summary.answers[:1]:
            console.print(f"{answer}\n")
        for shown in (page.results(summary), page.published(summary)):
            kept = [
                title
                for title in shown.frame
                if not str(title).startswith(("Update", "Stored", "Compared"))
            ]
            if kept:
                console.print(
                    table(kept, shown.frame[kept].to_numpy().tolist(), title=shown.caption)
                )
        for note in summary.warnings:
            say("Note:", note, "bold yellow")
        for row in failures:
            say(
                f"{row['status']}:",
                " ".join(f"{cell_id(row)}: {row.get('error') or ''}".split()),
                "bold red",
            )
        line(console, f"report  {folder / 'report.html'}")
        line(console, f"table   {folder / 'summary.csv'}")

    return Answer(answer, show, exit_code=SOME_FAILED if failures and data else 0)


def _forecast(plan: Plan) -> dict[str, float] | None:
    """Seconds of a step and hours of the study; None, with a note, if the base cannot be loaded."""
    from qpeft_lab.compare.forecast import forecast, speed_of

    try:
        with stderr().status("Timing two steps"):
            speed = speed_of(plan)
    except InputError as error:
        say("Note:", f"the time of the study is unknown: {error}")
        return None
    return {"seconds_per_step": speed.step, "hours": forecast(plan, speed) / 3600}


def _show_plan(console: Console, plan: Plan, data: dict[str, Any]) -> None:
    study = plan.study
    console.print(f"{study.title}\n{study.question}\n")
    rows = [
        (
            method.key,
            method.trainable,
            method.deployed,
            " ".join(f"{rate:g}" for rate in method.rates),
        )
        for method in study.methods
    ]
    console.print(table(("Method", "Trainable", "Deployed", "Learning rates"), rows))
    console.print(facts(listed({"steps": study.run.steps, "runs": data["cells"]})))
    if (times := data["forecast"]) is not None:
        hours = duration(3600 * times["hours"])
        step = times["seconds_per_step"]
        console.print(
            f"\nAbout {hours} here with one worker and one thread; a step takes {step:.2g} s."
        )
    more = (
        "More tuning runs follow if the best learning rate is at an edge. "
        if data["cells"]["tuning"]
        else ""
    )
    console.print(f"\n{more}To run it:\n")
    line(console, study.command, "cyan")


class CompareBar(CompareProgress):
    """Shows the number of cells done and the progress of the running ones, and prints a line per
    finished cell. Without a terminal it prints a line at each quarter of a run.
    """

    def __init__(self, shown: progress.Progress) -> None:
        self._bars = shown
        self._n_done = 0
        self._total = 0
        self._all = shown.add_task("cells", total=None, text="")
        self._of_cell: dict[str, progress.TaskID] = {}
        self._quarters: dict[str, int] = {}  # of a cell's run, that are done
        self._n_ended = 0  # in this call
        self._began = time.monotonic()

    def on_total(self, n_cells: int, n_finished: int) -> None:
        if n_finished > self._n_done:
            say("Note:", f"{n_finished} of {n_cells} cells are already done")
        self._n_done = n_finished
        self._total = n_cells
        self._bars.update(self._all, total=n_cells, completed=n_finished)

    def on_cell(self, cell: Cell, reached: Reached) -> None:
        name = f"{cell.method} {cell.name}"
        loss = "" if reached.loss is None else f"loss {reached.loss:.3f}"
        left = "" if reached.seconds_left is None else f"{duration(reached.seconds_left)} left"
        text = ", ".join(filter(None, (reached.what, loss, left)))
        if cell.cell_id not in self._of_cell:
            self._of_cell[cell.cell_id] = self._bars.add_task(name, total=None, text="")
        bar = self._of_cell[cell.cell_id]
        self._bars.update(bar, total=reached.steps, completed=reached.step, text=text)
        is_long = (reached.seconds_left or 0.0) > _WORTH_A_LINE
        if not stderr().is_terminal and reached.steps and is_long:
            quarter = 4 * reached.step // reached.steps
            if self._quarters.get(cell.cell_id, 0) < quarter < 4:
                self._quarters[cell.cell_id] = quarter
                line(stderr(), f"{name}: step {reached.step} of {reached.steps}: {text}")

    def on_row(self, cell: Cell, row: Row) -> None:
        self._n_done += 1
        self._n_ended += 1
        per_cell = (time.monotonic() - self._began) / self._n_ended
        left = duration(per_cell * max(self._total - self._n_done, 0))
        self._bars.update(self._all, completed=self._n_done, text=f"about {left} left")
        if cell.cell_id in self._of_cell:
            self._bars.remove_task(self._of_cell.pop(cell.cell_id))
        line(
            stderr(), f"{self._n_done} of {self._total}: {cell.method} {cell.name}: {_outcome(row)}"
        )


def _outcome(row: Row) -> str:
    if row["status"] != "success":
        return " ".join(f"{row['status']}: {row.get('error') or ''}".split())
    losses = {"test loss": row.get("test_loss"), "validation loss": row.get("valid_loss")}
    known = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
    worse = (
        ", did not improve on the base"
        if row.get("lr") is not None and row.get("best_step") == 0
        else ""
    )
    return f"{known[0]}{worse}" if known else "measured"
