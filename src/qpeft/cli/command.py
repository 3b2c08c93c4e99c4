"""The common part of all commands: `--json`, `--debug`, exit codes, quiet libraries, the format of the help."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qpeft.checks import check_text
from qpeft.cli import console, ctrl_c, failures
from qpeft.cli.options import expand
from qpeft.cli.quiet import quiet_libraries
from qpeft.errors import InputError

_FLAGS = {
    "as_json": typer.Option(
        "--json", metavar="", help="Print one JSON object instead of text.", rich_help_panel="Output"
    ),
    "debug": typer.Option(
        "--debug",
        metavar="",
        help="Show tracebacks, and the warnings and logs of libraries.",
        rich_help_panel="Output",
    ),
}


def command(function: Callable[..., console.Answer]) -> Callable[..., None]:
    """Make `function` a command: options from `Fields`, `--json`, `--debug`, errors as exit codes.

    `function` returns an `Answer`, which alone is written to standard output; what libraries print goes to standard
    error. An exception becomes a message and an exit code.
    """
    expanded = expand(function)

    @functools.wraps(expanded)
    def run(*, as_json: bool, debug: bool, **options: Any) -> None:
        try:
            with redirect_stdout(sys.stderr), quiet_libraries(debug, options), ctrl_c.raised():
                _check_folder()
                for value in options.values():
                    check_text(value)
                answer = expanded(**options)
            if as_json:
                console.print_json(answer.data)
            else:
                answer.show(console.stdout())
            sys.stdout.flush()
            if answer.exit_code:
                raise typer.Exit(answer.exit_code)
        except (typer.Exit, BrokenPipeError):  # Typer handles a closed pipe
            raise
        except BaseException as error:  # code of a user may call sys.exit, which would end as a success
            if isinstance(error.__context__, BrokenPipeError):  # Rich's exit for a closed pipe
                raise
            _report(error, failures.explain(error, options), as_json, debug)
            raise typer.Exit(failures.exit_code(error)) from None

    parameters = [*inspect.signature(expanded).parameters.values()]
    for name, option in _FLAGS.items():
        flag = Annotated[bool, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


_MAY_BE_EMPTY = "separator"  # of texts


class _Command(TyperCommand):
    """A command that refuses empty arguments; as a path, an empty text would be the current folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options, values, _ = self.make_parser(ctx).parse_args([*args])
        names = {parameter.name: parameter.opts[0] for parameter in self.params}
        for name, value in (("an argument", values), *options.items()):
            if name != _MAY_BE_EMPTY and "" in (value if isinstance(value, list) else [value]):
                raise typer.BadParameter(f"{names.get(name, name)} is empty; give a value, or leave it out", ctx=ctx)
        return super().parse_args(ctx, args)


def application(about: Callable[..., None], commands: Iterable[Callable[..., None]], **options: Any) -> typer.Typer:
    """Commands under one name; the docstring of `about` is their common help, `options` are Typer's."""
    made = typer.Typer(add_completion=False, rich_markup_mode="rich", **options)
    made.callback(help=_filled(about))(about)
    for function in commands:
        made.command(cls=_Command, help=_filled(function))(function)
    return made


def _filled(function: Callable[..., None]) -> str:
    """The docstring with each paragraph on one line, for Typer to wrap; indented lines are examples and stay apart."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(
        inspect.cleandoc(text) if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs
    )


def _check_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the current folder was removed; change to another folder with cd") from None


def _report(error: BaseException, message: str, as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    label, rest = ("Error:", message)
    if isinstance(error, KeyboardInterrupt):  # begins with "Interrupted" or "Stopped"
        label, _, rest = message.partition(" ")
        ctrl_c.shown()
    console.say(label, rest, style="bold red")
    if as_json:
        console.print_failure(error, message, failures.exit_code(error))
