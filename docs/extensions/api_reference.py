"""Makes `automodule` complete and signatures of classes short, for the API reference.

A settings class shows `(**fields)`, because the page of settings lists its fields. A class whose documentation has no
arguments is created by qpeft alone and shows no signature.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from sphinx.application import Sphinx

PACKAGES = ("qpeft.backends", "qpeft.circuits", "qpeft.diagnostics", "qpeft.methods", "qpeft.metrics", "qpeft.testing")


def has_settings(found: Any) -> bool:
    """Whether it is a dataclass with a help text for its fields."""
    return is_dataclass(found) and any("help" in field.metadata for field in fields(found))


def is_made_by_qpeft(found: Any) -> bool:
    """Whether it is a class whose documentation names no argument."""
    texts = (found.__doc__, found.__init__.__doc__) if isinstance(found, type) else ("Args:",)
    return not any("Args:" in (text or "") for text in texts)


def _import_lazy_names(app: Sphinx) -> None:
    """`automodule` documents what a module contains already, and lazy names are not in it before their first use."""
    for module in map(import_module, PACKAGES):
        vars(module).update({name: getattr(module, name) for name in module.__all__})


def _signature(app: Sphinx, what: str, name: str, found: Any, *_: Any) -> tuple[str, str] | None:
    if what != "class" or issubclass(found, str):
        return None
    if has_settings(found):
        return "(**fields)", ""
    return ("", "") if is_made_by_qpeft(found) else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", _import_lazy_names)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
