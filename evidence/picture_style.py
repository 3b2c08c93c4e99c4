"""The style of the picture of the README: matplotlib settings and colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

FONT = 11  # pixels
INK, MUTED, FAINT = "#1c1d20", "#5d6067", "#d9d8d2"
QUANTUM, CLASSICAL, CONTROL = "#1559b7", "#3f4248", "#a34a00"
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
    """Draw and save within. `name` is part of the ids in the SVG: two pictures of a page need two
    names.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS | {"svg.hashsalt": name})
        yield


def figure(height: float, width: float) -> Figure:
    """An empty figure of `width` by `height` pixels."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
