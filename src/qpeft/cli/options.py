"""Command-line options generated from dataclass fields, so that each field is explained in one place only.

A command marks a dict parameter with the settings class whose fields are its options::

    def plan(generator: Annotated[dict[str, Any], Fields(QPAGeneratorConfig, panel="QPA")]): ...

`expand` replaces this parameter by one option for each field that has a help text. The dict then holds the fields
that the user set; defaults stay in the settings class. A field that several settings classes share (`n_layers`) is
one option: its help quotes each class, and every dict whose class has the field receives the value. A parameter may
be marked with several `Fields`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

_NOT = "not_"  # before a field's name: the parameter of its hidden option --no-NAME


@dataclass(frozen=True)
class Fields:
    """Marks a dict parameter of a command, which is filled from the options of one settings class.

    Attributes:
        settings: The dataclass.
        panel: Title of the group in the help; without `only`, the metadata "panel" of a field takes precedence.
        only: Names of the fields to offer. Default: all that have a help text.
        leave_out: Names of the fields not to offer.
    """

    settings: type
    panel: str
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Field[Any]]:
        return (f for f in fields(self.settings) if "help" in f.metadata and self._offers(f.name))

    @property
    def owner(self) -> str:
        """The panel's title up to its colon."""
        return self.panel.partition(":")[0]

    def _offers(self, name: str) -> bool:
        return name not in self.leave_out and (not self.only or name in self.only)


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every parameter marked by `Fields` replaced by the options of its settings class."""
    signature = inspect.signature(function, eval_str=True)
    groups = {name: marks for name, p in signature.parameters.items() if (marks := _fields_of(p.annotation))}

    @functools.wraps(function)
    def call(_context: typer.Context, **values: Any) -> Any:
        chosen = {name: values[name] for name in values if _was_given(_context, name)}
        chosen |= {name.removeprefix(_NOT): False for name in chosen if name.startswith(_NOT)}
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
        for f in (f for mark in groups[name] for f in mark if f.name not in options):
            options |= {option.name: option for option in _options(owners[f.name], f)}
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


def _options(owners: list[Fields], field: Field[Any]) -> list[inspect.Parameter]:
    """The option of a field that each of `owners` has, and --no-NAME for a boolean; `field` is the first owner's."""
    is_shared = len(owners) > 1
    panel = " and ".join(group.owner for group in owners) if is_shared else owners[0].panel
    text = " ".join(f"{group.owner}: {_explained(group, field.name)}" for group in owners)
    settings: dict[str, Any] = {
        "help": text if is_shared else _explained(owners[0], field.name, with_default=False),
        "rich_help_panel": panel if owners[0].only else field.metadata.get("panel", panel),
    }
    default = inspect.Parameter.empty if _is_required(field) else None
    if field.default is not MISSING and not is_shared:
        default = field.default
    hint = get_type_hints(owners[0].settings)[field.name]
    if _members(hint) == [bool]:
        return _switches(field.name, default, settings)
    annotation, extra = _typer_type(hint, field)
    return [_parameter(field.name, default, annotation, typer.Option(**settings, **extra))]


def _switches(name: str, default: Any, settings: dict[str, Any]) -> list[inspect.Parameter]:
    """--NAME, and a hidden --no-NAME: a column for the names of the latter would leave the help no room."""
    flag = name.replace("_", "-")
    if default:
        settings["help"] += f" Default: yes; --no-{flag} turns it off."
    return [
        _parameter(name, default, bool, typer.Option(f"--{flag}", metavar="", show_default=False, **settings)),
        _parameter(_NOT + name, False, bool, typer.Option(f"--no-{flag}", hidden=True)),
    ]


def _parameter(name: str, default: Any, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _explained(group: Fields, name: str, with_default: bool = True) -> str:
    """The field's help with its choices; a single option's default is printed by Typer."""
    field = next(f for f in group if f.name == name)
    choices = f" One of {', '.join(field.metadata['choices'])}." if "choices" in field.metadata else ""
    default = f" Default: {field.default}." if with_default and field.default not in (MISSING, None) else ""
    return f"{field.metadata['help']}{choices}{default}"


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _typer_type(hint: Any, field: Field[Any]) -> tuple[Any, dict[str, Any]]:
    """The annotation for Typer, and further arguments of `typer.Option`; the settings class checks the choices."""
    if "choices" in field.metadata:
        return str, {"metavar": "NAME"}
    kinds = _members(hint)
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)]
    if items:
        return _parsed(_integers, "N,N,...") if items == [int] else _parsed(_names, "NAME,...")
    if float in kinds:
        return _parsed(number, "NUMBER")
    if kinds in ([int], [str], [Path]):
        return kinds[0], {"metavar": {int: "N", str: "TEXT", Path: "PATH"}[kinds[0]]}
    raise TypeError(
        f"field {field.name} has type {hint}; command-line options support str, Path, bool, int, float, "
        "lists and tuples of int or str, and a field with choices"
    )


def _members(hint: Any) -> list[Any]:
    is_union = get_origin(hint) in (Union, types.UnionType)
    return [kind for kind in (get_args(hint) if is_union else (hint,)) if kind is not type(None)]


def _parsed(parser: Callable[[str], Any], metavar: str) -> tuple[Any, dict[str, Any]]:
    """An option read by `parser`. Typer passes the default through it too, which is returned unchanged."""

    def parse(value: Any) -> Any:
        return parser(value) if isinstance(value, str) else value

    return Any, {"parser": parse, "metavar": metavar}


def number(text: str) -> int | float:
    """An int if the text is one, such as `100_000`; otherwise a float."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise typer.BadParameter(f"expected a number such as 0.5 or 100000, got {text!r}")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected integers such as 32,64,32, got {text!r}") from None


def _names(text: str) -> list[str] | str:
    """A list of names; PEFT's `all-linear` stays a string. (PEFT reads any other string as a regular expression.)"""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"expected names such as q_proj,v_proj, got {text!r}")
    return text if text == "all-linear" else names
