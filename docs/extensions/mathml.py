"""Formulas as MathML, converted when the pages are built: no script, no font and no network is
needed to read them.

Every current browser renders MathML. `\\tag{...}` becomes a label at the right end of the line. A
command that the converter does not support is a warning, and so fails the build of `make docs`.
"""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LOG = logging.getLogger(__name__)
_TAG = re.compile(r"\\tag\{([^}]*)\}")


def to_mathml(latex: str, display: str = "inline") -> str:
    """A `<math>` element. Raises ValueError where a command is unsupported."""
    # rows have no numbers
    for name in ("{align}", "{aligned}"):
        latex = latex.replace(name, "{align*}")
    element = convert(latex.replace(r"\_", "_"), display=display)
    # a command, or a column that is outside of a table
    if unsupported := re.findall(r">[^<]*\\[^<]*<|>&<", element.replace("&#x0005C;", "\\")):
        raise ValueError(f"unsupported in {latex!r}: {unsupported}")
    return element


def _inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(_converted(node, "inline"))
    raise nodes.SkipNode


def _display(writer: HTML5Translator, node: nodes.math_block) -> None:
    tags = "".join(f'<span class="eqno">({tag})</span>' for tag in _TAG.findall(node.astext()))
    writer.body.append(f'<div class="formula">{_converted(node, "block")}{tags}</div>')
    raise nodes.SkipNode


def _converted(node: nodes.math | nodes.math_block, display: str) -> str:
    try:
        return to_mathml(_TAG.sub("", node.astext()), display)
    except Exception as error:
        _LOG.warning("formula not converted: %s", error, location=node)
        return ""


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_display, None)
    )
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
