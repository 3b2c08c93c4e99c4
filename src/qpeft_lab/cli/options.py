"""Command-line options made from fields, so that each field is explained, with its limits, in one
place only.

The parameters of a command are keyword-only. One whose default is an `option` is an option; one
that is annotated with a dataclass becomes the options of its fields, and receives an instance;
several classes become one dictionary of the fields that were given, whose defaults stay in the
settings::

    def plan(
        *,
        adapter: Loading,
        generator: Annotated[dict[str, Any], Fields(QPAGeneratorConfig, "QPA")],
        num_labels: int | None = option(None, "Number of classes.", at_least=2),
    ) -> Answer: ...

A field that several classes share (`n_layers`) is one option: its help quotes each class, and every
parameter whose class has the field receives the value. Fields need a help text; besides the limits
of `check_fields`, their metadata may have `panel`, `metavar`, `argument` (a positional argument)
and `repeated` (an option that may be repeated).
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from qpeft.checks import check_fields

# names of options in other tools
ALIASES = {
    "learning-rate": "lr",
    "num-epochs": "epochs",
    "per-device-batch-size": "batch-size",
}
SHOWN = 25  # of a command with more options, those with a panel are in --help-all only
_OF_PATTERNS = frozenset(r"\*+?()[]|^$")  # in a regular expression, and in no name of a module
_METAVARS = {bool: "", int: "N", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Fields:
    """The fields of a settings class that are options of a command.

    Attributes:
        settings: The dataclass.
        panel: Title of their group in `--help-all`, after which a shared field quotes them; "" for
            the main group, apart from fields with a panel of their own.
        only: Names of the fields to offer. Default: all that have a help text and a type that an
            option can have.
        leave_out: Names of the fields not to offer.
        is_complete: False if fields without a default may be missing on the command line.
    """

    settings: type
    panel: str = ""
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    is_complete: bool = True

    def __iter__(self) -> Iterator[Field[Any]]:
        for known in fields(self.settings):
            is_chosen = known.name in self.only if self.only else known.default_factory is not dict
            if "help" in known.metadata and is_chosen and known.name not in self.leave_out:
                yield known


def needed(text: str, **metadata: Any) -> Any:
    """As `qpeft.checks.option`, without a default."""
    return field(metadata={"help": text, **metadata})


class Signature:
    """The options of a command, and the arguments that they become."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        own = [
            (p.name, p.annotation, p.default) for p in parameters if isinstance(p.default, Field)
        ]
        # by parameter: its type, and what it is made of; under "" the options that are parameters
        # themselves
        self._groups: dict[str, tuple[Any, list[Fields]]] = {}
        hints = {p.name: p.annotation for p in parameters if not isinstance(p.default, Field)}
        for name, hint in {"": make_dataclass("Own", own, kw_only=True), **hints}.items():
            kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            self._groups[name] = kind, marks or [Fields(kind)]
        owners: dict[str, list[Fields]] = {}
        for group in (group for _, groups in self._groups.values() for group in groups):
            for member in group:
                owners.setdefault(member.name, []).append(group)
        #: of the command line, in the order of the help
        self.parameters = [_parameter(name, groups) for name, groups in owners.items()]

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the function. Raises ConfigError for a value out of range."""
        made: dict[str, Any] = {}
        for name, (kind, groups) in self._groups.items():
            names = {f.name for group in groups for f in group}
            made[name] = {
                name: value for name, value in values.items() if name in names and value is not None
            }
            if is_dataclass(kind):
                made[name] = kind(**made[name])  # type: ignore[operator]
                check_fields(made[name])
        return {**vars(made.pop("")), **made}


def flag(name: str) -> str:
    """`n_layers` as `--n-layers`."""
    return f"--{name.replace('_', '-')}"


def _parameter(name: str, owners: list[Fields]) -> inspect.Parameter:
    """The option of a field that each of `owners` has. One that is not given is None."""
    of_owners = [next(f for f in group if f.name == name) for group in owners]
    first = of_owners[0]
    text = _help(first)
    panel = first.metadata.get("panel", owners[0].panel)
    if len(owners) > 1:
        text = " ".join(
            f"{group.panel}: {_help(f)}" for group, f in zip(owners, of_owners, strict=True)
        )
        panel = " and ".join(group.panel for group in owners)
    for alias in (alias for alias, of in ALIASES.items() if flag(of) == flag(name)):
        text += f" Also {flag(alias)}."
    hint, extra = _typer_type(get_type_hints(owners[0].settings)[name], first)
    names = f"{flag(name)}/{flag(f'no_{name}')}" if first.default is True else flag(name)
    made: Any = typer.Option(names, help=text, rich_help_panel=panel or None, **extra)
    if first.metadata.get("argument"):
        made = typer.Argument(help=text, **extra)
    required = (
        first.default is MISSING and first.default_factory is MISSING and owners[0].is_complete
    )
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, made]
    )


def _help(field: Field[Any]) -> str:
    """The field's help with its choices and its default."""
    choices = field.metadata.get("choices", ())
    text = field.metadata["help"] + (f" One of {', '.join(map(str, choices))}." if choices else "")
    is_shown = field.default not in (MISSING, None, "") and field.default is not False
    return text + (
        f" Default: {'yes' if field.default is True else field.default}." if is_shown else ""
    )


def _typer_type(hint: Any, field: Field[Any]) -> tuple[Any, dict[str, Any]]:
    """The annotation for Typer, and further arguments of `typer.Option`; the settings class checks
    the values.
    """
    is_union = get_origin(hint) in (Union, types.UnionType)
    kinds = [kind for kind in (get_args(hint) if is_union else (hint,)) if kind is not type(None)]
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)]
    metavar = field.metadata.get("metavar")
    if field.metadata.get("repeated"):
        return list[str] | None, {"metavar": metavar}
    if items:
        parser, usual = (
            (_numbers(*items), "N,N,...")
            if items[0] in (int, float)
            else (partial(_names, or_text=str in kinds), "NAME,...")
        )
        return Any, {"parser": parser, "metavar": metavar or usual}
    if float in kinds:
        return Any, {"parser": number, "metavar": metavar or "NUMBER"}
    if len(kinds) != 1 or kinds[0] not in _METAVARS:
        raise TypeError(f"field {field.name} has the type {hint}, which an option cannot have")
    usual = "NAME" if "choices" in field.metadata and kinds != [int] else _METAVARS[kinds[0]]
    return kinds[0], {"metavar": metavar or usual}


def number(text: str) -> int | float:
    """An int if the text is one, such as `100_000`; otherwise a float."""
    with suppress(ValueError):
        return int(text)
    return float(text)


def _numbers(kind: type) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(map(kind, text.split(",")))


def _names(text: str, or_text: bool) -> list[str] | str:
    """A list of names; `or_text`: PEFT's `all-linear`, and a regular expression, which PEFT compares
    with the whole name of a module, stay texts.
    """
    if or_text and (text == "all-linear" or not _OF_PATTERNS.isdisjoint(text)):
        return text
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError("a name is empty")
    return names
