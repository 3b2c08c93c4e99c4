"""The style of the pictures of these pages: matplotlib settings, the page's colours, and SVG to put into a page.

A picture is drawn in the light colours. In the page each becomes the CSS variable of the same name (`conf.py`), so one
drawing serves the light and the dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, FONT = 430, 11  # pixels
INK, MUTED, FAINT, PAPER = "#1c1d20", "#5d6067", "#d9d8d2", "#fefefd"
QUANTUM, CLASSICAL, CONTROL = "#1559b7", "#3f4248", "#a34a00"
VARIABLES = {
    INK: "color-foreground-primary",
    MUTED: "color-foreground-secondary",
    FAINT: "color-background-border",
    PAPER: "color-background-primary",
    QUANTUM: "quantum",
    CLASSICAL: "classical",
    CONTROL: "control",
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.size": FONT,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlesize": FONT,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": FONT - 1,
    "lines.markersize": 5,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw and save within. `name` is part of the ids in the SVG: two pictures of a page need two names."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS | {"svg.hashsalt": name})
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of `width` by `height` pixels."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def axes(height: float, x: str, y: str) -> Axes:
    """The axes of a new figure, with the names of both; y stands above its axis, where it is read without turning."""
    plot = figure(height).add_subplot()
    plot.set_xlabel(x)
    plot.set_title(y)
    return plot


def to_svg(chart: Figure) -> str:
    """The figure as an SVG document, the same bytes each time."""
    buffer = io.StringIO()
    chart.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def inline(svg: str, description: str) -> str:
    """The `<svg>` element for a page, in the page's font and colours; `description` is read to those who cannot see."""
    _, _, body = svg[svg.index("<svg") :].partition(">")
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would apply to the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*|font-family: [^;\"]*", r"font-size: \1", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    size = f'viewBox="{box[0][9:-1]}" style="width: 100%; max-width: {float(box[1]):g}px"'
    return f'<svg role="img" aria-label="{escape(description)}" {size}>{body.strip()}'
