"""The directive `settings-table`: fields, defaults and help texts of a dataclass.

```{settings-table} qpeft.methods.qpa.settings QPASettings
```
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class SettingsTable(SphinxDirective):
    """Arguments: the module and the name of a dataclass whose fields have `metadata["help"]`; others are left out."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments
        self.env.note_dependency(import_module(module).__file__ or "")
        rows = [_row(field) for field in fields(getattr(import_module(module), name)) if "help" in field.metadata]
        table = nodes.table(classes=["settings"])
        group = nodes.tgroup(cols=3)
        group += [nodes.colspec(colwidth=width) for width in (18, 12, 70)]
        group += nodes.thead("", _entries(*(nodes.paragraph(text=title) for title in ("field", "default", "meaning"))))
        group += nodes.tbody("", *rows)
        table += group
        return [table]


def _row(field: Field[Any]) -> nodes.row:
    meaning = nodes.paragraph(text=field.metadata["help"])
    if choices := field.metadata.get("choices"):
        meaning += nodes.Text(" One of ")
        for position, choice in enumerate(choices):
            meaning += [nodes.Text(", " if position else ""), nodes.literal(text=choice)]
        meaning += nodes.Text(".")
    return _entries(_code(field.name), _code(_default(field)), meaning)


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not MISSING else "required"


def _code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal(text=text))


def _entries(*cells: nodes.Node) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("settings-table", SettingsTable)
    return {"parallel_read_safe": True}
