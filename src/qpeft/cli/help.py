"""How `--help` looks: what the command does, then its options in groups, readable at 80 columns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from qpeft.cli.console import print_failure, stdout

if TYPE_CHECKING:
    from rich.console import Console

_INDENT = 26
_WIDEST = 100


class HelpfulCommand(TyperCommand):
    """A command whose help groups its options by `rich_help_panel`, and whose bad usage `--json` answers too."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _usage_errors_as_json(args):
            return super().make_context(info_name, args, parent, **extra)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_render(self, ctx))


class HelpfulGroup(TyperGroup):
    """The group of all commands, in the same form."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _usage_errors_as_json(args):
            return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_render(self, ctx))


def command_group(about: Callable[[], None], commands: Iterable[Callable[..., None]]) -> typer.Typer:
    """Commands under one name; `about` has nothing but the docstring that is their common help."""
    made = typer.Typer(cls=HelpfulGroup, no_args_is_help=True)
    made.callback()(about)
    for function in commands:
        made.command(cls=HelpfulCommand)(function)
    return made


@contextmanager
def _usage_errors_as_json(args: list[str]) -> Iterator[None]:
    """Click finds these before any command runs, and says them on standard error alone."""
    is_wanted = "--json" in args  # now, for the parser empties the list
    try:
        yield
    except Exception as error:
        if is_wanted and hasattr(error, "format_message"):  # click's errors, under whichever name Typer ships it
            print_failure(error, error.format_message(), error.exit_code)  # type: ignore[attr-defined]
        raise


def _render(command: Any, ctx: Any) -> str:
    console = stdout()
    console.width = min(console.width, _WIDEST)
    with console.capture() as captured:
        _print_text(console, ctx.get_usage() + "\n\n" + inspect.cleandoc(command.help))
        for title, rows in _sections(command, ctx).items():
            console.print(f"\n{title}", style="bold")
            for left, right in rows:
                _print_row(console, left, right)
    return captured.get()


def _print_text(console: Console, text: str) -> None:
    """Paragraphs are filled; indented lines are commands to copy, so they stay as they are."""
    from rich.text import Text

    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            console.print()
        if paragraph.startswith(" "):
            console.print(Text(paragraph, style="cyan"), soft_wrap=True)
        else:
            console.print(Text(paragraph.replace("\n", " ")))


def _print_row(console: Console, left: str, right: str) -> None:
    """Option and explanation side by side; an option that is too long has a line of its own."""
    from rich.text import Text

    head = Text(f"  {left}", style="cyan")
    if len(head) + 2 > _INDENT:
        console.print(head, soft_wrap=True)
        head = Text()
    for line in Text(right).wrap(console, console.width - _INDENT):
        head.pad_right(_INDENT - len(head))
        console.print(head + line, soft_wrap=True)
        head = Text()


def _sections(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Section title -> (option with its value, explanation), in the order of the command's parameters."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        title = getattr(parameter, "rich_help_panel", None) or "Options"
        sections.setdefault(title, []).append((_left(parameter), _right(parameter)))
    if isinstance(command, TyperGroup):
        return {"Commands": [(name, _summary(sub)) for name, sub in command.commands.items()], **sections}
    return sections


def _summary(command: Any) -> str:
    return inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " ")


def _left(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    if parameter.secondary_opts:
        return f"--[no-]{parameter.opts[0].removeprefix('--')}"
    return ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {parameter.metavar or 'TEXT'}")


def _right(parameter: Any) -> str:
    text = re.sub(r"\s+", " ", parameter.help or "")
    if parameter.required:
        return f"{text} [required]"
    default = parameter.default
    if default is None or default is False or not parameter.show_default:
        return text
    return f"{text} [default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"
