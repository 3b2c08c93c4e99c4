"""Control characters in texts, which files of others may contain, do not act on the terminal."""

import io
import warnings

import pytest
from rich.progress import Progress, TextColumn
from rich.text import Text

from qpeft.cli import quiet
from qpeft.cli.console import facts, remarks, table
from qpeft.cli.quiet import quiet_libraries
from qpeft.cli.safe_console import SafeConsole
from qpeft.errors import DataWarning, setting

HOSTILE = "a\x1b]0;title\x07b\r\x9b31m\u202ec"


def progress(console):
    with Progress(TextColumn("{task.description}"), console=console) as bar:
        bar.add_task(HOSTILE)
    return ""


@pytest.mark.parametrize(
    "make",
    [
        lambda console: HOSTILE,
        lambda console: Text.assemble(("note", "bold"), HOSTILE),
        lambda console: table((HOSTILE, "n"), [("name", HOSTILE)], title=HOSTILE),
        lambda console: facts([(HOSTILE, HOSTILE, HOSTILE)]),
        lambda console: remarks([(HOSTILE, HOSTILE)]),
        progress,
    ],
    ids=["text", "styled", "table", "facts", "remarks", "progress"],
)
def test_control_characters_are_shown(make):
    written = io.StringIO()
    console = SafeConsole(file=written, force_terminal=True, width=200, markup=False, highlight=False)
    console.print(make(console))
    assert r"a\x1b]0" in written.getvalue()
    assert not any(sequence in written.getvalue() for sequence in ("\x1b]", "\x07", "\x9b", "\u202e"))


def test_warning_names_options(capsys):
    with quiet_libraries(debug=False, options=("seq_len",)):
        for package in (quiet.__file__, "/other.py"):
            found = DataWarning(f"no answer within {setting('seq_len')}=8 for {setting('lr')}")
            warnings.warn_explicit(found, DataWarning, package, 1)
    assert capsys.readouterr().err == "Note: no answer within --seq-len=8 for lr\n"
