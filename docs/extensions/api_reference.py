"""Makes `automodule` complete, signatures of classes short and fields of settings visible, for the
API reference.

A settings class shows `(**fields)` and below its documentation a list of its own fields. A class
whose documentation has no arguments is created by qpeft alone and shows no signature.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any

from peft import LoraConfig
from sphinx.application import Sphinx

PACKAGES = (
    "qpeft.backends",
    "qpeft.circuits",
    "qpeft_lab.diagnose",
    "qpeft.methods",
    "qpeft_lab.metrics",
    "qpeft.testing",
)
FIELDS_OF_PEFT = {field.name for field in fields(LoraConfig)}


def has_settings(found: Any) -> bool:
    """Whether it is a dataclass with a help text for its fields."""
    return is_dataclass(found) and any("help" in field.metadata for field in fields(found))


def is_made_by_qpeft(found: Any) -> bool:
    """Whether it is a class whose documentation names no argument."""
    texts = (found.__doc__, found.__init__.__doc__) if isinstance(found, type) else ("Args:",)
    return not any("Args:" in (text or "") for text in texts)


def _import_lazy_names(app: Sphinx) -> None:
    """`automodule` documents what a module contains already, and lazy names are not in it before
    their first use.
    """
    for module in map(import_module, PACKAGES):
        vars(module).update({name: getattr(module, name) for name in module.__all__})


def _signature(app: Sphinx, what: str, name: str, found: Any, *_: Any) -> tuple[str, str] | None:
    if what != "class" or issubclass(found, str):
        return None
    if has_settings(found):
        return "(**fields)", ""
    return ("", "") if is_made_by_qpeft(found) else None


def _list_fields(
    app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Append the fields with their defaults and help texts; those of PEFT's LoraConfig are
    documented there.
    """
    if what != "class" or not has_settings(found):
        return
    own = [
        field
        for field in fields(found)
        if field.metadata.get("help") and field.name not in FIELDS_OF_PEFT
    ]
    lines += [
        "",
        *(
            line
            for field in own
            for line in (f"``{field.name}`` = ``{_default(field)}``", f"    {_help(field)}")
        ),
    ]


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not MISSING else "..."


def _help(field: Field[Any]) -> str:
    choices = ", ".join(f"``{choice}``" for choice in field.metadata.get("choices") or ())
    return field.metadata["help"].replace("*", "\\*") + (f" One of {choices}." if choices else "")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", _import_lazy_names)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _list_fields)
    return {"parallel_read_safe": True}
