"""What every command has in common: `--json`, `--debug`, exit codes, quiet libraries."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from qpeft.cli import console, failures
from qpeft.cli.options import expand
from qpeft.cli.quiet import quiet_libraries

_FLAGS = {
    "as_json": typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel="Output"),
    "debug": typer.Option("--debug", help="Show tracebacks and what the libraries say.", rich_help_panel="Output"),
}


def command(function: Callable[..., console.Answer]) -> Callable[..., None]:
    """Make `function` a command: options from `Fields`, `--json`, `--debug`, errors as exit codes.

    `function` returns an `Answer`, which alone goes to standard output, whatever libraries print;
    what it raises becomes a message and an exit code.
    """
    expanded = expand(function)

    @functools.wraps(expanded)
    def run(*, as_json: bool, debug: bool, **options: Any) -> None:
        try:
            with redirect_stdout(sys.stderr), quiet_libraries(debug):
                answer = expanded(**options)
            _print(answer, as_json)
            if answer.exit_code:
                raise typer.Exit(answer.exit_code)
        except typer.Exit:
            raise
        except BrokenPipeError:
            _close_stdout()
            raise typer.Exit(failures.WORK_FAILED) from None
        except (Exception, KeyboardInterrupt) as error:
            _report(error, as_json, debug)
            raise typer.Exit(failures.exit_code(error)) from None

    run.__signature__ = _with_flags(inspect.signature(expanded))  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in inspect.signature(run).parameters.values()}
    return run


def _with_flags(signature: inspect.Signature) -> inspect.Signature:
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in _FLAGS.items()
    ]
    return signature.replace(parameters=[*signature.parameters.values(), *flags])


def _print(answer: console.Answer, as_json: bool) -> None:
    if as_json:
        console.print_json(answer.data)
    else:
        answer.show(console.stdout())
    sys.stdout.flush()


def _report(error: BaseException, as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message = failures.explain(error)
    label, told = ("Error:", message)
    if isinstance(error, KeyboardInterrupt):  # its own first word says it: Interrupted, Stopped
        label, _, told = message.partition(" ")
    console.say(label, told, style="bold red")
    if as_json:
        console.print_failure(error, message, failures.exit_code(error))


def _close_stdout() -> None:
    """Nobody reads on: without this, Python complains once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
