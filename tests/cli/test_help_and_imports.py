"""Help pages, usage errors, and which modules the command line imports."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from qpeft.cli import commands
from qpeft.cli.options import Fields

COMMANDS = [command.__name__ for command in commands.COMMANDS]
HEAVY = {"torch", "transformers", "peft", "pennylane", "matplotlib", "datasets", "numpy", "accelerate"}


def fresh(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


def test_help_loads_no_heavy_module():
    """Every help page in one process: what all of them import together is more than what one does."""
    code = """
import contextlib, io, json, sys
import qpeft
from qpeft.cli.app import build
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in sys.argv[1:])]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        build()(arguments)
print(json.dumps(sorted(sys.modules)))
"""
    done = fresh(code, *COMMANDS)
    modules = set(json.loads(done.stdout))
    assert done.stderr == ""
    assert "qpeft.cli.plan" in modules
    assert not HEAVY & modules


def test_python_m_qpeft_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "qpeft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qpeft ")


def settings_groups(name: str) -> list[Fields]:
    function = inspect.unwrap(commands.COMMANDS[COMMANDS.index(name)])
    annotations = (p.annotation for p in inspect.signature(function, eval_str=True).parameters.values())
    return [mark for annotation in annotations for mark in get_args(annotation) if isinstance(mark, Fields)]


def words(help_page: str) -> str:
    """The text of a help page, without the borders of its panels."""
    return " ".join(help_page.replace("│", " ").split())


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_explains_every_field_and_has_an_example(name, columns, qpeft_cli):
    result = qpeft_cli(name, "--help", env={"COLUMNS": columns})
    text = words(result.stdout)
    assert result.exit_code == 0
    for group in settings_groups(name):
        for field in group:
            assert f"--{field.name.replace('_', '-')} " in text
            assert " ".join(field.metadata["help"].split()) in text
    assert f"qpeft {name} " in text.split("Examples:", 1)[1]
    assert "--json" in text
    assert max(map(len, result.stdout.splitlines())) <= int(columns)
    assert "…" not in text, "an option or its help is cut off"
    assert "\x1b" not in result.stdout


def test_help_lists_every_command(qpeft_cli):
    text = qpeft_cli("--help").stdout
    assert all(f"\n│ {name} " in text for name in (*COMMANDS, "compare", "circuits"))


def test_missing_command_prints_the_help(qpeft_cli):
    result = qpeft_cli()
    assert result.exit_code == 0
    assert result.stdout == qpeft_cli("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["plan", "--model", "x", "--r", "abc"], "BadParameter", "--r"),
        (["plan"], "MissingParameter", "--model"),
        (["plan", "--modle", "x"], "NoSuchOption", "--model"),
        (["exprot"], "UsageError", "export"),
    ],
)
def test_usage_error_names_the_nearest_name_and_prints_json(arguments, error, named, qpeft_cli):
    shown = qpeft_cli(*arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert named in words(shown.stderr)
    found = json.loads(qpeft_cli(*arguments, "--json").stdout)
    assert (found["exit_code"], found["error"]) == (2, error)
    assert named in found["message"]


WAITING = """
import sys
import qpeft.cli.generate as module
def wait(_):
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.read()  # never ends
module._prompt = wait
from qpeft.cli.app import main
sys.argv = ["qpeft", "generate", "--model", "x"]
main()
"""


def test_interrupted_command_exits_with_code_130_and_one_line():
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.stdout.read(), process.stderr.read()  # its standard input stays open
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "Interrupted. Run the same command again to resume.\n"


INTERRUPTED_IMPORT = """
import signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        interrupts = range({times} * (name == "{module}"))
        for _ in interrupts:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass
        if interrupts:
            raise ImportError("partially initialized module")
sys.meta_path.insert(0, Interrupting())
from qpeft.cli.app import main
sys.argv = ["qpeft", "evaluate", "--model", "embedded", "--data", "numpy-docs"]
main()
"""


@pytest.mark.parametrize(("module", "times"), [("typer", 1), ("transformers", 1), ("transformers", 3)])
def test_interrupted_import_exits_with_code_130_and_one_line(module, times):
    code = INTERRUPTED_IMPORT.format(module=module, times=times)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "Interrupted. Run the same command again to resume.\n"


def test_library_does_not_log_an_error_that_is_raised(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{broken')
    code = """
import sys
from qpeft.cli.quiet import quiet_libraries
from qpeft.errors import DataError
with quiet_libraries(debug=False):
    from qpeft.training.sources import Columns, load_examples
    try:
        load_examples(sys.argv[1], "validation", Columns())
    except DataError as error:
        print(error)
"""
    done = fresh(code, str(tmp_path / "bad.jsonl"))
    assert "cannot read" in done.stdout
    assert done.stderr == ""


def test_closed_pipe_exits_without_a_traceback():
    code = """
from qpeft.cli.command import command
from qpeft.cli.console import Answer
import typer
@command
def much() -> Answer:
    return Answer({}, lambda console: console.print("x" * 200_000))
app = typer.Typer()
app.command()(much)
app()
"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_help_that_cannot_be_written_is_an_error_without_a_traceback():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "qpeft", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: The disk is full. Free some space and run the same command again.\n"
