"""Common to all commands: help, options, imports, exit codes, messages, --json, --debug, progress,
Ctrl-C.
"""

import errno
import json
import shlex
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from typer.testing import CliRunner

from qpeft.errors import ConfigError, DataWarning, QpeftError, TrainingError
from qpeft_lab.cli.app import COMMANDS, load
from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.compare import CompareBar
from qpeft_lab.cli.console import Answer, TrainingBar, bars, quiet_libraries, stderr
from qpeft_lab.cli.options import Fields
from qpeft_lab.compare.cell_progress import Reached
from qpeft_lab.training.score import Score

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "pennylane",
    "qiskit",
    "matplotlib",
    "datasets",
    "numpy",
    "accelerate",
}
LEAVES = {
    f"{name} {sub}".strip(): leaf
    for name in COMMANDS
    for sub, leaf in getattr(load(name), "commands", {"": load(name)}).items()
}


# help and imports


def test_help_imports_neither_a_command_nor_a_heavy_module():
    code = """
import contextlib, io, json, sys
from qpeft_lab.cli.app import build
lists = []
for arguments in [["--version"], ["--help"], *([*names.split(), "--help"] for names in sys.argv[1:])]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        build()(arguments)
    lists.append(sorted(sys.modules))
print(json.dumps([lists[1], lists[-1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, *LEAVES], capture_output=True, text=True)
    of_group, of_all = (set(modules) for modules in json.loads(done.stdout))

    assert done.stderr == ""

    modules = {f"qpeft_lab.cli.{name.replace('-', '_')}" for name in COMMANDS}
    assert not modules & of_group
    assert modules <= of_all
    assert not HEAVY & of_all


@pytest.mark.parametrize("name", LEAVES)
def test_help_shows_at_most_30_options_and_help_all_the_others(name, qpeft_cli):
    shown, full = (
        qpeft_cli(f"{name} {option}", env={"COLUMNS": "80"}) for option in ("--help", "--help-all")
    )
    assert shown.exit_code == 0
    assert full.exit_code == 0

    hidden = [p for p in LEAVES[name].params if p.hidden]
    assert len(LEAVES[name].params) - len(hidden) + 1 <= 30

    for parameter in LEAVES[name].params:
        if parameter.param_type_name == "option":
            assert f"{parameter.opts[0]} " in full.stdout


def test_help_of_train_shows_what_people_with_a_circuit_look_for(qpeft_cli):
    shown = qpeft_cli("train --help", env={"COLUMNS": "80"}).stdout
    for option in ("--ansatz", "--n-layers", "--budget", "--shots", "--eval-blocks"):
        assert f"│ {option} " in shown


# options from fields

HELP = {"help": "A field."}


@dataclass
class First:
    budget: float | None = field(default=None, metadata=HELP)
    hidden: tuple[int, ...] | None = field(default=None, metadata=HELP)
    names: list[str] | str | None = field(default="all-linear", metadata=HELP)
    flag: bool = field(default=True, metadata=HELP)
    out: Path = field(default=Path("run"), metadata=HELP)
    seed: int = field(default=0, metadata=HELP)
    set: list[str] | None = field(default=None, metadata={**HELP, "repeated": True})
    lr: float = field(default=1.0, metadata=HELP)
    internal: dict | None = None


@dataclass
class Second:
    seed: int = field(default=1, metadata=HELP)
    left_out: int = field(default=1, metadata=HELP)


@dataclass
class Own:
    place: str = field(metadata={**HELP, "argument": True})
    above: int = field(default=1, metadata={**HELP, "at_least": 1})


@command
def probe(
    first: Annotated[dict[str, Any], Fields(First, "One")],
    second: Annotated[dict[str, Any], Fields(Second, "Two", leave_out=("left_out",))],
    own: Own,
) -> Answer:
    """Do it."""
    return Answer({"first": first, "second": second, "own": vars(own)}, lambda _: None)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("", {}),
        ("--seed 0", {"seed": 0}),  # the default
        ("--budget 0.5", {"budget": 0.5}),
        ("--budget 100_000", {"budget": 100_000}),
        ("--hidden 32,64,32", {"hidden": [32, 64, 32]}),
        ("--names 'q_proj, v_proj'", {"names": ["q_proj", "v_proj"]}),
        ("--names all-linear", {"names": "all-linear"}),
        ("--set a=1 --set b=2", {"set": ["a=1", "b=2"]}),
        ("--no-flag", {"flag": False}),
        ("--out a/b", {"out": "a/b"}),
        ("--learning-rate 0.5", {"lr": 0.5}),
        ("--learning_rate 5e-1", {"lr": 0.5}),
        ("--budget half", None),
        ("--seed 2.5", None),
        ("--hidden 32,x", None),
        ("--names a,,b", None),
        ("--left-out 1", None),
        ("--internal 1", None),
        ("--above 0", None),
        ("--out ''", None),  # as `--out "$OUT"` with a variable that is not set
        ("''", None),
    ],
)
def test_value_is_converted_for_every_class_that_has_the_field_or_refused(arguments, expected):
    done = CliRunner().invoke(application([probe]), ["here", *shlex.split(arguments), "--json"])
    assert done.exit_code == (2 if expected is None else 0)
    if expected is not None:
        content = json.loads(done.stdout)
        of_second = {name: value for name, value in expected.items() if name == "seed"}
        assert content["first"] == expected
        assert content["second"] == of_second


# exit codes and messages


def run(work, *arguments: str):
    """A command that does this work, or raises this error."""

    @command
    def probe() -> Answer:
        """Do the work."""
        if isinstance(work, BaseException):
            raise work
        return work()

    return CliRunner().invoke(application([probe]), list(arguments))


FAILURES = [
    (ConfigError("r must be at least 1, got 0"), 2, "r must be at least 1, got 0"),
    (TrainingError("the loss is nan at step 3"), 1, "the loss is nan at step 3"),
    (QpeftError("an error of qpeft"), 1, "an error of qpeft"),
    (MemoryError(), 1, "--batch-size"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "--batch-size"),
    (OSError(errno.ENOSPC, "No space left on device", "run/x"), 1, "run/x"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "disk"),
    (PermissionError(errno.EACCES, "Permission denied", "run"), 1, "Permission denied: run"),
    (KeyboardInterrupt(), 130, "same command again"),
    (KeyboardInterrupt("Stopped after step 7."), 130, "Stopped after step 7."),
    (ZeroDivisionError("a very internal thing\nsecond line"), 1, "--debug"),
    (SystemExit(0), 1, "sys.exit"),
]


@pytest.mark.parametrize("error, code, named", FAILURES, ids=lambda value: type(value).__name__)
def test_failure_prints_one_message_and_sets_the_exit_code(error, code, named):
    result = run(error)
    assert result.exit_code == code
    assert result.stdout == ""
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1

    content = json.loads(run(error, "--json").stdout)
    assert content["exit_code"] == code
    assert content["error"] == type(error).__name__
    assert named in content["message"]


def test_debug_shows_the_traceback():
    assert "raise work" in run(ZeroDivisionError("deep"), "--debug").stderr


def test_answer_as_text_and_as_json_without_the_output_of_libraries():
    def chatty() -> Answer:
        print("hello from a library")  # noqa: T201
        return Answer(
            {"n": 3, "bad": float("nan"), "where": [1.5, Path("x")]},
            lambda out: out.print("three [n]"),
            3,
        )

    as_text = run(chatty)
    as_json = run(chatty, "--json")

    assert (
        (as_text.exit_code, as_text.stdout)
        == (as_json.exit_code, "three [n]\n")
        == (3, "three [n]\n")
    )
    assert json.loads(as_json.stdout) == {"n": 3, "bad": None, "where": [1.5, "x"]}


# libraries


def test_only_warnings_of_qpeft_are_shown_and_each_once(capsys):
    """By their place, or by their category: a config's are attributed to its caller."""
    own = sys.modules[DataWarning.__module__].__file__
    with quiet_libraries(debug=False):
        for text, category, file in (
            ("no answer", UserWarning, own),
            ("no prompt", DataWarning, "/other.py"),
            ("no prompt", DataWarning, "/other.py"),
            ("not ours", UserWarning, "/other.py"),
        ):
            warnings.warn_explicit(text, category, file, 1)
    assert capsys.readouterr().err == "Note: no answer\nNote: no prompt\n"


# progress


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_has_a_line_per_event_and_bars_on_a_terminal(terminal, capsys, monkeypatch):
    """A run that resumes, a new one, and a study of which one cell succeeded and one failed. A step
    takes ten seconds.
    """
    for name, value in (
        {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items() if terminal else ()
    ):
        monkeypatch.setenv(name, value)
    stderr.cache_clear()  # whether it is a terminal was seen before
    clock = [1000.0]
    with bars() as shown:
        shown.get_time = lambda: clock[-1]
        bar = TrainingBar(shown, "qpa")
        new = TrainingBar(shown, "lora")
        study = CompareBar(shown)
        score = Score(2.0, "nats per token", 1, {"perplexity": 7.39})
        new.on_start(4, 0)
        new.on_eval(0, score)
        bar.on_start(10, 2)
        for step in range(3, 8):
            clock.append(clock[-1] + 10.0)
            bar.on_step(step, 2.5)
        for done in range(9):
            bar.on_part("Evaluating", done, 8)
            clock.append(clock[-1] + 10.0)
        bar.on_eval(7, score)
        study.on_total(5, 2)
        good, bad = (
            SimpleNamespace(method="lora", name=name, cell_id=name) for name in ("lr0.1", "seed0")
        )
        study.on_cell(good, Reached("Loading the base model"))
        study.on_cell(good, Reached("", 50, 200, 2.25, 400.0))
        study.on_row(good, {"status": "success", "valid_loss": 2.5, "best_step": 0, "lr": 0.1})
        study.on_row(bad, {"status": "failed", "error": "no\nluck"})
    stderr.cache_clear()
    captured = capsys.readouterr()

    assert captured.out == ""

    for found in (
        "resuming from step 2",
        "lora: step 0 of 4: perplexity 7.39 on held-out data",
        "qpa: step 7 of 10: perplexity 7.39 on held-out data",
        "validation loss 2.5000",
        "failed: no luck",
    ):
        assert found in captured.err
    assert ("lora lr0.1: step 50 of 200: loss 2.250, 7 min left" in captured.err) != terminal

    for found in ("70%", "80%", "\r"):
        assert (found in captured.err) == terminal

    lines = captured.err.splitlines()
    steps = [line for line in lines if "per step" in line]
    of_new = [line for line in lines if line.startswith("lora: ")]
    if not terminal:
        assert steps == [
            f"qpa: step {step} of 10: training loss 2.500, 10 s per step, {left} s left"
            for step, left in ((4, 60), (7, 30))
        ]
        assert [line for line in lines if "Evaluating: batch" in line] == [
            "qpa: Evaluating: batch 3 of 8",
            "qpa: Evaluating: batch 6 of 8",
        ]
        assert of_new == [
            "lora: Evaluating before training",
            "lora: step 0 of 4: perplexity 7.39 on held-out data",
            "lora: Training",
        ]


# Ctrl-C

WAITING = """
import sys
import qpeft_lab.cli.generate as module
module._prompt = lambda _: print("ready", file=sys.stderr, flush=True) or sys.stdin.read()  # never ends
from qpeft.__main__ import main
sys.argv = ["qpeft", "generate", "--model", "x"]
main()
"""


def test_interrupted_command_exits_with_code_130_and_one_line():
    command = [sys.executable, "-c", WAITING]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        stdout = process.stdout.read()  # its standard input stays open
        stderr = process.stderr.read()

    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "Note: Interrupted. Run the same command again to resume.\n"
