"""The directive `drawn`: a picture that `docs/figures/NAME.py` draws when the pages are built.

```{drawn} circuit ry_ladder 4 2
:alt: A description of what the picture shows.

The caption.
```

Words after the name are arguments of `draw` in that module. The SVG uses the colours of the page (`figure_style`).
"""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module

import figure_style
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Drawn(SphinxDirective):
    """Arguments: the name of a module in `docs/figures`, and the arguments of its `draw`."""

    required_arguments = 1
    optional_arguments = 9
    has_content = True
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012 (as in docutils)

    def run(self) -> list[nodes.Node]:
        drawing = import_module(f"figures.{self.arguments[0]}")
        self.env.note_dependency(inspect.getfile(drawing))
        figure = nodes.figure(classes=["drawn"])
        if self.env.app.builder.format == "html":
            figure += nodes.raw("", self._svg(drawing.draw), format="html")
        figure += nodes.caption("", "", *self.parse_inline(" ".join(self.content))[0])
        self.set_source_info(figure)
        return [figure]

    def _svg(self, draw) -> str:
        name = "-".join(self.arguments)
        with figure_style.style(name), warnings.catch_warnings(action="ignore"):  # of the libraries a picture uses
            return figure_style.inline(figure_style.to_svg(draw(*self.arguments[1:])), self.options["alt"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": True}
