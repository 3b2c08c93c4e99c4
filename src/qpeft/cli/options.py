"""Dataclass fields as command-line options, so that a setting is explained in one place only.

A command asks for the fields of a settings class with an annotated dict::

    def plan(generator: Annotated[dict[str, Any], Fields(QPAGeneratorConfig, panel="QPA")]): ...

`expand` replaces that parameter by one option per field that has a help text. The dict then holds
the fields that the user set, and no others: defaults stay where they are, in the settings class.
Several settings classes may share a field (`n_layers`): there is one option then, explained in the words of each,
and all that have it receive it. One dict may be marked with several `Fields`; it holds the options of all.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer


@dataclass(frozen=True)
class Fields:
    """Marks a dict parameter of a command: it is filled from the options of one settings class."""

    settings: type
    panel: str
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Field[Any]]:
        return (f for f in fields(self.settings) if "help" in f.metadata and self._offers(f.name))

    @property
    def owner(self) -> str:
        """Whose settings these are: the panel's title up to a colon."""
        return self.panel.partition(":")[0]

    def _offers(self, name: str) -> bool:
        return name not in self.leave_out and (not self.only or name in self.only)


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every `Fields` parameter replaced by that settings class's options."""
    signature = inspect.signature(function, eval_str=True)
    groups = {name: marks for name, p in signature.parameters.items() if (marks := _fields_of(p.annotation))}

    @functools.wraps(function)
    def call(_context: typer.Context, **values: Any) -> Any:
        chosen = {name: values[name] for name in values if _was_given(_context, name)}
        for name, marks in groups.items():
            values[name] = {f.name: chosen[f.name] for group in marks for f in group if f.name in chosen}
        return function(**{name: values[name] for name in signature.parameters})

    context = inspect.Parameter("_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    return _with_signature(call, [context, *_in_order(signature, groups)])


def _in_order(signature: inspect.Signature, groups: dict[str, list[Fields]]) -> list[inspect.Parameter]:
    """The function's own parameters, with each group's options in the group's place."""
    owners: dict[str, list[Fields]] = {}
    for group in (mark for marks in groups.values() for mark in marks):
        for found in group:
            owners.setdefault(found.name, []).append(group)
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if name not in groups:
            options[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        for f in (f for mark in groups[name] for f in mark):
            options.setdefault(f.name, _option(owners[f.name], f))
    return list(options.values())


def _fields_of(annotation: Any) -> list[Fields]:
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [mark for mark in marks if isinstance(mark, Fields)]


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _with_signature(call: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _option(owners: list[Fields], field: Field[Any]) -> inspect.Parameter:
    """One option for a field that every one of `owners` has; `field` is the first one's."""
    choices = _choices(owners, field.name)
    annotation, extra = _typer_type(get_type_hints(owners[0].settings)[field.name], field, choices)
    is_shared = len(owners) > 1
    panel = " and ".join(group.owner for group in owners) if is_shared else owners[0].panel
    text = " ".join(_in_words_of(group, field.name) for group in owners) if is_shared else field.metadata["help"]
    if choices and not is_shared and not _fit_a_line(choices):
        text = f"{text} One of {', '.join(choices)}."
    option = typer.Option(help=text, rich_help_panel=field.metadata.get("panel", panel), **extra)
    default = inspect.Parameter.empty if _is_required(field) else None
    if field.default is not MISSING and not is_shared:
        default = field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _choices(owners: list[Fields], name: str) -> tuple[str, ...]:
    """What any of the owners allows; whether the one that is used does, it says itself."""
    allowed = (f.metadata.get("choices", ()) for group in owners for f in group if f.name == name)
    return tuple(dict.fromkeys(choice for choices in allowed for choice in choices))


def _in_words_of(group: Fields, name: str) -> str:
    field = next(f for f in group if f.name == name)
    choices = f" One of {', '.join(field.metadata['choices'])}." if "choices" in field.metadata else ""
    default = "" if field.default in (MISSING, None) else f" [default: {field.default}]"
    return f"{group.owner}: {field.metadata['help']}{choices}{default}"


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _typer_type(hint: Any, field: Field[Any], choices: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """The annotation that Typer understands, and what `typer.Option` needs beside it."""
    if choices:
        takes_file = bool(field.metadata.get("takes_file"))
        return _parsed(_one_of(choices, takes_file), "|".join(choices) if _fit_a_line(choices) else "NAME")
    kinds = _members(hint)
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)]
    if items:
        return _parsed(_numbers, "N,N,...") if items == [int] else _parsed(_names, "NAME,...")
    if float in kinds:
        return _parsed(number, "NUMBER")
    if kinds == [int]:
        return _parsed(_whole, "N")
    if kinds in ([bool], [str], [Path]):
        return kinds[0], {}
    raise TypeError(f"field {field.name} has type {hint}, which no command-line option can hold")


def _fit_a_line(choices: tuple[str, ...]) -> bool:
    return len("|".join(choices)) < 64


def _members(hint: Any) -> list[Any]:
    is_union = get_origin(hint) in (Union, types.UnionType)
    return [kind for kind in (get_args(hint) if is_union else (hint,)) if kind is not type(None)]


def _parsed(parser: Callable[[str], Any], metavar: str) -> tuple[Any, dict[str, Any]]:
    """An option read by `parser`, to which Typer also gives the default: that is no text, and stays."""

    def parse(value: Any) -> Any:
        return parser(value) if isinstance(value, str) else value

    return Any, {"parser": parse, "metavar": metavar}


def number(text: str) -> int | float:
    """`100_000` is a whole number, `0.5` and `1e-3` are not."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number such as 0.5 or 100000, got {text!r}") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got {text!r}") from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers such as 32,64,32, got {text!r}") from None


def _names(text: str) -> list[str] | str:
    """`all-linear` is PEFT's own word; other names form a list, for PEFT takes a string as a pattern."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"expected names such as q_proj,v_proj, got {text!r}")
    return text if text == "all-linear" else names


def _one_of(choices: tuple[str, ...], takes_file: bool) -> Callable[[str], str]:
    """A parser for one of `choices`, or for FILE.py:NAME where the field takes it."""

    def choose(text: str) -> str:
        if text in choices or (takes_file and ".py:" in text):
            return text
        nearest = get_close_matches(text, choices, n=1)
        hint = f"did you mean {nearest[0]!r}? Choose" if nearest else "choose"
        raise typer.BadParameter(f"unknown value {text!r}; {hint} one of {', '.join(choices)}")

    return choose
