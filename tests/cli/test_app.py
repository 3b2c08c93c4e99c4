"""Common to all commands: help, imports, exit codes, messages, --json, --debug, streams, Ctrl-C."""

import errno
import json
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qpeft.errors import ConfigError, DataWarning, QpeftError, TrainingError
from qpeft_lab.cli.app import COMMANDS, load
from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.console import Answer, quiet_libraries
from qpeft_lab.cli.options import SHOWN

HEAVY = {"torch", "transformers", "peft", "pennylane", "qiskit", "matplotlib", "datasets", "numpy", "accelerate"}


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
    assert not {f"qpeft_lab.cli.{name}" for name in COMMANDS} & of_group
    assert {f"qpeft_lab.cli.{name}" for name in COMMANDS} <= of_all
    assert not HEAVY & of_all


@pytest.mark.parametrize("name", LEAVES)
def test_help_shows_at_most_25_options_and_help_all_the_others(name, qpeft_cli):
    shown, full = (qpeft_cli(*name.split(), option, env={"COLUMNS": "80"}) for option in ("--help", "--help-all"))
    assert (shown.exit_code, full.exit_code) == (0, 0)
    hidden = [p for p in LEAVES[name].params if p.hidden]
    assert len(LEAVES[name].params) - len(hidden) + 1 <= SHOWN
    for parameter in LEAVES[name].params:
        if parameter.param_type_name == "option" and not parameter.name.startswith("not_"):
            assert f"{parameter.opts[0]} " in full.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["plan", "--model", "x", "--r", "abc"], "BadParameter", "--r"),
        (["plan"], "MissingParameter", "--model"),
        (["plan", "--modle", "x"], "NoSuchOption", "--model"),
        (["exprot"], "UsageError", "export"),
        (["train", "--data", "x"], "ConfigError", "--model"),
    ],
)
def test_usage_error_names_the_nearest_name_and_prints_json(arguments, error, named, qpeft_cli):
    shown = qpeft_cli(*arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert named in shown.stderr
    found = json.loads(qpeft_cli(*arguments, "--json").stdout)
    assert (found["exit_code"], found["error"]) == (2, error)
    assert named in found["message"]


# exit codes and messages


@dataclass
class Place:
    path: str = field(default="here", metadata={"help": "Where."})


def run(work, *arguments: str):
    @command
    def probe(place: Place) -> Answer:
        """Do the work."""
        return work()

    return CliRunner().invoke(application([probe]), list(arguments))


def raiser(error: BaseException):
    def work() -> Answer:
        raise error

    return work


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


@pytest.mark.parametrize(("error", "code", "named"), FAILURES, ids=lambda value: type(value).__name__)
def test_failure_prints_one_message_and_sets_the_exit_code(error, code, named):
    result = run(raiser(error))
    assert (result.exit_code, result.stdout) == (code, "")
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    found = json.loads(run(raiser(error), "--json").stdout)
    assert (found["exit_code"], found["error"]) == (code, type(error).__name__)
    assert named in found["message"]


def test_debug_shows_the_traceback():
    assert "raise error" in run(raiser(ZeroDivisionError("deep")), "--debug").stderr


def test_answer_as_text_and_as_json_without_the_output_of_libraries():
    def chatty() -> Answer:
        print("hello from a library")  # noqa: T201
        return Answer({"n": 3, "bad": float("nan"), "where": [1.5, Path("x")]}, lambda out: out.print("three [n]"), 3)

    as_text, as_json = run(chatty), run(chatty, "--json")
    assert (as_text.exit_code, as_text.stdout) == (as_json.exit_code, "three [n]\n") == (3, "three [n]\n")
    assert json.loads(as_json.stdout) == {"n": 3, "bad": None, "where": [1.5, "x"]}


# libraries


def test_only_warnings_of_qpeft_are_shown(capsys):
    import qpeft.errors

    with quiet_libraries(debug=False):
        for file in (qpeft.errors.__file__, "/other.py"):
            warnings.warn_explicit(DataWarning("no answer"), DataWarning, file, 1)
    assert capsys.readouterr().err == "Note: no answer\n"


# Ctrl-C

WAITING = """
import sys
import qpeft_lab.cli.generate as module
def wait(_):
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.read()  # never ends
module._prompt = wait
from qpeft.__main__ import main
sys.argv = ["qpeft", "generate", "--model", "x"]
main()
"""


def test_interrupted_command_exits_with_code_130_and_one_line():
    command, pipe = [sys.executable, "-c", WAITING], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.stdout.read(), process.stderr.read()  # its standard input stays open
    assert (process.returncode, stdout, stderr) == (130, "", "Interrupted. Run the same command again to resume.\n")
