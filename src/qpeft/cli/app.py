"""The entry point `qpeft`. Its imports are inside functions: Ctrl-C is handled before the first slow one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typer


def build() -> typer.Typer:
    """The application with every command."""
    from qpeft.cli import commands

    return commands.build()


def main() -> None:
    """Run the command line; ends the process with one of the documented exit codes."""
    from qpeft.cli import ctrl_c

    ctrl_c.handle()
    import io
    import sys

    from qpeft.cli.quiet import lasting_stderr, open_closed

    open_closed()
    sys.stderr = lasting_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of symbols in tables and drawings, on a terminal without them
    try:
        build()(prog_name="qpeft")
    except OSError as error:  # the help cannot be written; commands report their errors themselves
        from qpeft.cli import console, failures

        console.say("Error:", failures.explain(error), style="bold red")
        sys.exit(failures.WORK_FAILED)
