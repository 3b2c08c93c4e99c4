"""Common to all commands: exit codes, messages, --json, --debug, silent libraries."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from qpeft.cli import quiet
from qpeft.cli.command import command
from qpeft.cli.commands import build
from qpeft.cli.console import Answer
from qpeft.cli.failures import explain
from qpeft.errors import ConfigError, QpeftError, TrainingError, setting
from qpeft.training.interrupt import StopRequest


def answer() -> Answer:
    return Answer({"n": 3, "bad": float("nan"), "where": [1.5, "x"]}, lambda console: console.print("three [n]"))


def run(work, *arguments: str):
    @command
    def probe(path: Annotated[str, typer.Option()] = "here") -> Answer:
        """Do the work."""
        return work()

    app = typer.Typer()
    app.command()(probe)
    return CliRunner().invoke(app, list(arguments))


def raiser(error: BaseException):
    def work() -> Answer:
        raise error

    return work


FAILURES = [
    (ConfigError("r must be at least 1, got 0"), 2, "r must be at least 1, got 0"),
    (TrainingError("the loss is nan at step 3"), 1, "the loss is nan at step 3"),
    (QpeftError("an error of qpeft"), 1, "an error of qpeft"),
    (MemoryError(), 1, "Out of memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "smaller --batch-size"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "Out of memory"),
    (OSError(errno.ENOSPC, "No space left on device", "run/x"), 1, "The disk is full: run/x"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "The disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "run"), 1, "Permission denied: run"),
    (KeyboardInterrupt(), 130, "same command again"),
    (KeyboardInterrupt("Stopped after step 7."), 130, "Stopped after step 7."),
    (ZeroDivisionError("a very internal thing\nsecond line"), 1, "run again with --debug"),
]


@pytest.mark.parametrize(("error", "code", "message"), FAILURES, ids=lambda value: type(value).__name__)
def test_failure_prints_one_message_and_sets_the_exit_code(error, code, message):
    result = run(raiser(error))
    assert result.exit_code == code
    assert message.lower() in result.stderr.lower()
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""
    found = json.loads(run(raiser(error), "--json").stdout)
    assert (found["exit_code"], found["error"]) == (code, type(error).__name__)
    assert message.lower() in found["message"].lower()


def test_error_names_the_options_of_the_command_and_leaves_values_alone():
    """The quoted column has the name of a setting; a column of a file is never shown as an option."""
    error = ConfigError(f"x.csv has the columns text_column, seq_len; set {setting('text_column')} or {setting('r')}")
    shown = "x.csv has the columns text_column, seq_len; set --text-column or r"
    assert explain(error, ["text_column", "seq_len"]) == shown
    assert str(error) == explain(error) == shown.replace("--text-column", "text_column")


def test_text_that_is_not_utf8_is_refused():
    result = run(answer, "--path", "a\udcff")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'a\\udcff' is not valid UTF-8" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--model", "embedded", "--data", "numpy-docs", "--out", ""),
        ("generate", "--model=", "--adapter", "run", "--prompt", "x"),
        ("plan", "--model", "gpt2", "--target-modules", ""),
        ("compare", "run", "", "--out", "x"),
    ],
)
def test_empty_arguments_are_refused(arguments, tmp_path, monkeypatch):
    """Such as `--out "$OUT"` with a variable that is not set: an empty path means the current folder."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(build(), [*arguments, "--json"])
    assert result.exit_code == 2
    assert "is empty" in json.loads(result.stdout)["message"]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("generate", "--model", "embedded", "--prompt", "x", "--seed", 2**63), "--seed"),
        (("generate", "--model", "embedded", "--prompt", "x", "--temperature", "1e-320"), "--temperature"),
        (("generate", "--model", "embedded", "--prompt", "x", "--temperature", "nan"), "--temperature"),
        (("diagnose", "--model", "embedded", "--samples", 10**23), "--samples"),
        (("diagnose", "--model", "embedded", "--seed", 10**23), "--seed"),
        (("circuits", "count", "--n-layers", 10**23), "--n-layers"),
        (("circuits", "draw", "--n-qubits", 10**23), "--n-qubits"),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_option(arguments, name):
    result = CliRunner().invoke(build(), [*map(str, arguments)])
    assert result.exit_code == 2
    assert name in result.stderr
    assert "Unexpected" not in result.stderr


def test_removed_working_directory_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = run(answer)
    assert result.exit_code == 2
    assert "the current folder was removed; change to another folder" in result.stderr


def test_output_without_unicode_replaces_symbols():
    ended = subprocess.run(
        [sys.executable, "-m", "qpeft", "circuits", "draw", "--n-qubits", "2"],
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "RY ?[0,0]" in ended.stdout


@pytest.mark.parametrize("how", ["reader has ended", "closed"])
def test_command_without_standard_error_ends_as_with_it(how):
    command = [sys.executable, "-c", CHATTY]
    read, write = os.pipe()
    os.close(read)
    stderr = {"stderr": write} if how == "reader has ended" else {"preexec_fn": lambda: os.close(2)}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, **stderr)
    os.close(write)
    assert (ended.returncode, ended.stdout) == (0, "three [n]\n")


def test_command_with_closed_standard_input_and_output_ends_as_with_them():
    ended = subprocess.run([sys.executable, "-c", CHATTY], stderr=subprocess.PIPE, text=True, preexec_fn=close_both)
    assert ended.returncode == 0
    assert "Error" not in ended.stderr
    arguments = [sys.executable, "-m", "qpeft", "generate", "--model", "embedded"]
    ended = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=close_both)
    assert ended.returncode == 2
    assert "the prompt is empty" in ended.stderr


def close_both():
    os.close(0)
    os.close(1)


CHATTY = """
import sys
import typer
from qpeft.cli import app, command, console
@command.command
def probe() -> console.Answer:
    for _ in range(1000):
        console.say("Note:", "x" * 100, "bold")
    return console.Answer({}, lambda out: out.print("three [n]"))
def build():
    made = typer.Typer()
    made.command()(probe)
    return made
app.build = build
sys.argv = ["qpeft"]
app.main()
"""


def test_debug_shows_the_traceback():
    result = run(raiser(ZeroDivisionError("deep")), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise error" in result.stderr


def test_answer_as_text_and_as_json():
    assert run(answer).stdout == "three [n]\n"
    assert json.loads(run(answer, "--json").stdout) == {"n": 3, "bad": None, "where": [1.5, "x"]}


def test_output_of_libraries_does_not_reach_stdout():
    def chatty() -> Answer:
        print("hello from a library")  # noqa: T201
        return answer()

    assert "hello" not in run(chatty, "--json").stdout


def test_only_warnings_of_qpeft_are_shown(capsys):
    def warns() -> Answer:
        warnings.warn_explicit("chatter", UserWarning, "/site-packages/transformers/x.py", 1)
        import qpeft.errors

        warnings.warn_explicit("not a compression", UserWarning, qpeft.errors.__file__, 1)
        return answer()

    result = run(warns)
    assert result.exit_code == 0
    assert result.stderr == "Note: not a compression\n"


def test_exit_code_of_the_command_is_kept():
    assert run(raiser(typer.Exit(3))).exit_code == 3


def test_ctrl_c_during_a_write_can_print(monkeypatch):
    """With a buffer the handler's message raises RuntimeError: reentrant call."""
    read, write = os.pipe()
    main, found = threading.get_ident(), []

    def interrupt_and_read():
        time.sleep(0.1)  # the pipe is full: the write waits
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        with os.fdopen(read) as file:
            found.append(file.read())

    reader = threading.Thread(target=interrupt_and_read)
    with os.fdopen(write, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        lasting = quiet.lasting_stderr()
        with StopRequest(lambda: print("stopping", file=lasting)) as stop:
            reader.start()
            print("x" * 1_000_000, file=lasting)
    reader.join()
    assert stop.wanted
    assert "stopping" in found[0]
