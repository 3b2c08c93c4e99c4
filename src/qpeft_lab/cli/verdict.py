"""`qpeft verdict CIRCUIT` and `qpeft verdict check FILE`: is it the circuit?"""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from qpeft.checks import MOST_LAYERS, option
from qpeft.errors import InputError
from qpeft.methods import records
from qpeft_lab.cli.command import Command, application, command
from qpeft_lab.cli.compare import CompareBar
from qpeft_lab.cli.console import Answer, bars, line, say, stderr, table
from qpeft_lab.cli.options import Fields, flag, needed
from qpeft_lab.settings import SharedSettings
from qpeft_lab.verdict import MARGIN

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.verdict.circuit import Circuit
    from qpeft_lab.verdict.decision import Verdict
    from qpeft_lab.verdict.planning import Planned

OfRun = Annotated[
    dict[str, Any],
    Fields(
        SharedSettings,
        only=("model", "data", "eval_data", "steps", "batch_size", "seq_len"),
        is_complete=False,
    ),
]
_RUN = {"model": "embedded", "data": "numpy-docs", "batch_size": 8, "seq_len": 64}


@command
def run(
    *,
    circuit: str = needed(
        "FILE.py:NAME of a QNode, a Qiskit circuit or a registered ansatz; a file of OpenQASM; or an"
        " ansatz of qpeft.",
        metavar="CIRCUIT",
        argument=True,
    ),
    shape: tuple[int, ...] | None = option(None, "Shape of a QNode's angles, such as 2,4."),
    out: Path | None = option(None, "Folder of the study. Default: verdict-NAME.", metavar="DIR"),
    minutes: float = option(
        15.0, "The study is made to fit into so many minutes.", above=0, at_most=100_000
    ),
    margin: float = option(
        MARGIN,
        "A difference below so many per cent of the gain of LoRA r=8 counts as none. Fixed before"
        " the first run.",
        above=0,
        at_most=100,
    ),
    method: str = option(
        "qpa",
        "The adapter that the circuit generates.",
        choices=tuple(record.key for record in records() if record.controls),
    ),
    n_layers: int | None = option(
        None, "Circuit layers. Default: 8, or 2 of quantum_peft.", at_least=1, at_most=MOST_LAYERS
    ),
    angle_scale: float | None = option(
        None,
        "Factor on the learning rate of the angles. Default: 1, or 50 of quantum_peft.",
        above=0,
    ),
    n_seeds: int | None = option(
        None, "Seeds. Default: what fits into --minutes.", at_least=3, at_most=1000
    ),
    workers: int = option(1, "Runs in parallel.", at_least=1),
    yes: bool = option(False, "Start without a question."),
    of_run: OfRun,
) -> Answer:
    """Is it the circuit? Train adapters with a circuit and without, and report what the study shows.

    The trained circuit is compared with itself at frozen angles and with Gaussian features, and
    with LoRA, LoRA-SB and Uni-LoRA of at most its size. The learning rate of each is searched in the
    same way, and the comparison uses new seeds. Before it starts, the command says how long it takes
    and which difference it can detect.
    Run the same command again to resume. The answer is verdict.html, verdict.md and verdict.json.

    Examples:

      qpeft verdict my_circuit.py:circuit --shape 2,4
      qpeft verdict ry_ladder --minutes 60 --workers 2 --out ladder
      qpeft verdict my_circuit.py:circuit --shape 2,4 --model smollm2 --minutes 600
      qpeft verdict check verdict-circuit/verdict.json
    """
    from qpeft_lab.files import locked, output_file
    from qpeft_lab.verdict.circuit import circuit_of, removed_if_refused
    from qpeft_lab.verdict.protocol import refuse_change

    name = circuit.rpartition(":")[2] or circuit
    folder = out or Path(f"verdict-{Path(name).stem}")
    output_file(folder, is_folder=True)
    refuse_change(folder, margin=margin, method=method)
    given = {"shape": shape, "method": method, "margin": margin, "n_layers": n_layers}
    given |= {"angle_scale": angle_scale, "n_seeds": n_seeds, **of_run, "out": folder}
    words = ["qpeft", "verdict", circuit]
    for option_name, value in given.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [flag(option_name), text]
    with removed_if_refused(folder):
        with stderr().status("Reading the circuit, and timing a few steps with it"):
            chosen = circuit_of(circuit, shape, folder)
            # after the circuit, which may be refused: these imports take seconds
            from qpeft_lab.compare.runner import run as run_plan
            from qpeft_lab.verdict.decision import decide
            from qpeft_lab.verdict.page import write
            from qpeft_lab.verdict.planning import Request, planned

            run_fields = {**_RUN, **of_run}
            request = Request(
                chosen, method, n_layers, run_fields, margin, n_seeds, workers, angle_scale
            )
            study = planned(request, folder, minutes, shlex.join(words))
        _announce(study, folder)
        _announce_idle_angles(chosen)
        if study.forecast is not None and not yes:
            _ask()
    with locked(folder):  # not while another process runs a study in it
        study.protocol.keep(folder)
    with bars() as shown:
        run_plan(study.plan, workers, CompareBar(shown), retry=True)
    verdict = decide(folder)
    write(verdict, folder)
    return _answer(verdict, folder)


@command
def check(
    *,
    file: Path = needed("A verdict.json next to its rows.", metavar="FILE", argument=True),
) -> Answer:
    """Compute a verdict again from the rows next to it. Exit code 1 if they give another one.

    Example:

      qpeft verdict check verdict-circuit/verdict.json
    """
    from qpeft_lab.verdict.decision import check as check_file

    verdict = check_file(file)
    return Answer(
        {"file": file, "sentence": verdict.sentence},
        lambda console: line(console, f"{file} follows from its rows. {verdict.sentence}"),
    )


def verdict() -> None:
    """Is it the circuit? Train adapters with a circuit and without, and report what the study shows."""


class _Run(Command):
    """The command `run`, whose name is not typed."""

    def get_usage(self, ctx: Any) -> str:
        return super().get_usage(ctx).replace(ctx.command_path, ctx.parent.command_path)


class _Verdict(TyperGroup):
    """`qpeft verdict CIRCUIT` is `qpeft verdict run CIRCUIT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if known else ["run", *(args or ["--help"])])


def group() -> typer.Typer:
    """The commands of `qpeft verdict`."""
    made = application((run, check), verdict, cls=_Verdict)
    made.registered_commands[0].cls = _Run
    return made


def _announce(study: Planned, folder: Path) -> None:
    """Say what is about to run, and what it can detect."""
    protocol = study.protocol
    n_seeds = len(protocol.seeds)
    margin = protocol.margin
    forecast = study.forecast
    if forecast is None:
        say("Note:", f"the study in {folder} has begun; it resumes")
        return
    say(
        "Study:",
        f"{protocol.steps:,} steps, {n_seeds} seeds, {len(study.plan.study.methods) - 1} adapters;"
        f" about {forecast.minutes:.0f} minutes",
    )
    say(
        "It can detect:",
        f"a difference of about {study.detectable:.1f} % of LoRA's gain, if seeds vary as on the"
        f" embedded base; the margin is {margin:g} %",
    )
    if study.detectable > margin:
        remedy = "more --n-seeds or --steps"
        if forecast.deciding is not None:
            remedy = f"--minutes {math.ceil(forecast.deciding)}"
        say(
            "Note:",
            "the margin is smaller, so this study can decide about large differences only;"
            f" {remedy} would decide about small ones",
            "bold yellow",
        )


def _announce_idle_angles(circuit: Circuit) -> None:
    """Say how many angles of a circuit of one size cannot change the adapter."""
    from qpeft_lab.verdict.circuit import idle_angles

    if circuit.fixed is None:
        return
    if n_idle := idle_angles(circuit.fixed):
        say(
            "Note:",
            f"{n_idle} of {circuit.fixed.n_angles} angles of {circuit.label} change no probability,"
            " so training them changes nothing",
            "bold yellow",
        )


def _ask() -> None:
    """Raise InputError unless the user agrees."""
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here; add --yes to start")
    if not typer.confirm("Start?", default=True, err=True):
        raise InputError("nothing was run")


def _answer(verdict: Verdict, folder: Path) -> Answer:
    from qpeft_lab.verdict.page import HEADER, lines

    def show(console: Console) -> None:
        console.print(f"{verdict.sentence}\n", style="bold")
        # without the learning rate, for 80 columns
        console.print(table(HEADER[:-1], [cells[:-1] for cells in lines(verdict)]))
        for name in ("verdict.html", "verdict.md", "verdict.json"):
            line(console, f"{folder / name}")

    return Answer({"out": folder, **asdict(verdict)}, show)
