"""The common part of all commands: options, `--json`, `--debug`, `--help-all`, exit codes and
messages.
"""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qpeft.errors import InputError, QpeftError
from qpeft_lab.cli import console
from qpeft_lab.cli.options import ALIASES, SHOWN, Signature
from qpeft_lab.files import is_disk_full

WORK_FAILED = 1
BAD_INPUT = 2
SOME_FAILED = 3  # some cells of a comparison; the others have results
INTERRUPTED = 130

# options with a panel that `--help` shows all the same: what people with a circuit look for
_ALWAYS_SHOWN = ("ansatz", "n_layers", "budget", "shots", "eval_blocks")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def command(function: Callable[..., console.Answer]) -> Callable[..., None]:
    """Make `function` a command, whose parameters become options as in `qpeft_lab.cli.options`.

    `function` returns an `Answer`, which alone is written to standard output; what libraries print
    goes to standard error. An exception becomes a message and an exit code.
    """
    signature = Signature(function)

    @functools.wraps(function)
    def run(*, as_json: bool, debug: bool, help_all: bool, **options: Any) -> None:
        try:
            with redirect_stdout(sys.stderr), console.quiet_libraries(debug):
                answer = function(**signature.arguments(options))
            if as_json:
                console.print_json(answer.data)
            else:
                answer.print()
            sys.stdout.flush()
            if answer.exit_code:
                raise typer.Exit(answer.exit_code)
        except (typer.Exit, typer.BadParameter, BrokenPipeError):  # Typer handles a closed pipe
            raise
        # code of a user may call sys.exit, which would end as a success
        except BaseException as error:
            if isinstance(error.__context__, BrokenPipeError):  # Rich's exit for a closed pipe
                raise
            message = explain(error)
            if debug:
                traceback.print_exception(error, file=sys.stderr)
            console.say(
                "Note:" if isinstance(error, KeyboardInterrupt) else "Error:",
                message,
                style="bold red",
            )
            if as_json:
                console.print_failure(error, message, exit_code(error))
            raise typer.Exit(exit_code(error)) from None

    flags = {
        "as_json": typer.Option(
            "--json", metavar="", help="Print one JSON object instead of text."
        ),
        "debug": typer.Option(
            "--debug", metavar="", help="Show tracebacks, and the warnings and logs of libraries."
        ),
        "help_all": typer.Option(
            "--help-all", metavar="", is_eager=True, callback=_help_all, help="Show all options."
        ),
    }
    parameters = list(signature.parameters)
    for name, made in flags.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        hint = Annotated[bool, made]
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=hint))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


class Command(TyperCommand):
    """A command that refuses empty arguments, and whose `--help` leaves out the options with a
    panel if it has many.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        shown = [option for option in self.params if not getattr(option, "hidden", False)]
        self.more = [
            option
            for option in shown
            if getattr(option, "rich_help_panel", None) and option.name not in _ALWAYS_SHOWN
        ]
        if len(shown) < SHOWN:  # and --help itself
            self.more = []
        for option in self.more:
            option.hidden = True  # type: ignore[attr-defined]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for name, given in pairwise(["an argument", *args]):  # of a shell variable that is not set
            if not given:
                raise typer.BadParameter(f"{name} is empty; give a value, or leave it out", ctx=ctx)
        for name in self._given_twice(ctx, args):
            console.say("Note:", f"{name} is given twice; the last one counts", "bold yellow")
        return super().parse_args(ctx, args)

    def _given_twice(self, ctx: Any, args: list[str]) -> list[str]:
        """The options with one value that are given several times, which Click takes the last of."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        with_value = [
            each for each in order if not (each.multiple or getattr(each, "is_flag", False))
        ]
        counts = Counter(each.opts[0] for each in with_value if each.param_type_name == "option")
        return [name for name, count in counts.items() if count > 1]


def _help_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for option in getattr(context.command, "more", ()):
            option.hidden = False
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit


def application(
    commands: Iterable[Callable[..., None]],
    about: Callable[..., None] | None = None,
    aliases: Mapping[str, str] = ALIASES,
    **options: Any,
) -> typer.Typer:
    """Commands under one name, whose help is the docstring of `about`; without it, a single
    command.
    """
    made = typer.Typer(add_completion=False, rich_markup_mode="rich", **options)
    if about is not None:
        made.callback(help=_filled(about))(about)
    # of an option without its dashes, so that `--learning_rate` is `--lr`
    settings = {
        "token_normalize_func": lambda name: aliases.get(dashed := name.replace("_", "-"), dashed)
    }
    for function in commands:
        made.command(cls=Command, help=_filled(function), context_settings=settings)(function)
    return made


def _filled(function: Callable[..., None]) -> str:
    """The docstring with each paragraph on one line, for Typer to wrap; indented lines are examples
    and stay apart.
    """
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(
        inspect.cleandoc(text) if text.startswith(" ") else text.replace("\n", " ")
        for text in paragraphs
    )


def exit_code(error: BaseException) -> int:
    """130 for an interruption, 2 for bad input, which is refused before any work, 1 for other
    errors.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return BAD_INPUT if isinstance(error, InputError) else WORK_FAILED


def explain(error: BaseException) -> str:
    """The message for the user: what happened and what to do."""
    where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "Interrupted. Run the same command again to resume."
    if isinstance(error, QpeftError):
        return str(error)
    if isinstance(error, SystemExit):
        return (
            f"Code of a method, ansatz or backend of your own called sys.exit({error.code!r})."
            " Remove the call."
        )
    if isinstance(error, MemoryError) or any(
        phrase in str(error).lower() for phrase in _OUT_OF_MEMORY
    ):
        return "Out of memory. Use a smaller --batch-size or --seq-len, or a smaller model."
    if is_disk_full(error):
        return f"The disk is full{where}. Free some space and run the same command again."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{where}."
    line = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    return (
        f"Unexpected {type(error).__name__}: {line}. Run again with --debug to see the traceback."
    )
