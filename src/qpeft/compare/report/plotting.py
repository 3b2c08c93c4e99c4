"""Charts as SVG files: matplotlib with one style sheet, `style.mplstyle`, independent of the user's settings.

A chart is as wide as a phone, so that its text stays readable there; wider pages set several charts side by side.
Equal data give equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 344  # pixels
INK, MUTED, FAINT = "#1c1d20", "#5d6067", "#d9d8d2"
QUANTUM, CLASSICAL, CONTROL = "#1559b7", "#3f4248", "#a34a00"


@dataclass(frozen=True)
class Chart:
    """A chart: `name` of its file, `title` for readers who cannot see it, the SVG document, and a caption."""

    name: str
    title: str
    svg: str
    caption: str = ""

    @property
    def image(self) -> Markup:
        """An `<img>` element that contains the chart."""
        data = quote(self.svg, safe=" /;=,'<>")  # smaller than base64
        return Markup(f'<img class="chart" alt="{escape(self.title)}" src="data:image/svg+xml,{data}">')


@contextmanager
def drawing(height: float, width: float = WIDTH, legend: int = 0) -> Iterator[tuple[Figure, Axes]]:
    """A figure of `width` by `height` pixels with one pair of axes, and room for a legend of so many labels below.

    The style sheet applies to everything that is drawn and saved inside the block.
    """
    from matplotlib import style as styles
    from matplotlib.figure import Figure

    height += 10 + 15 * -(-legend // 2) if legend else 0
    sheet = files("qpeft.compare.report") / "style.mplstyle"
    with styles.context(["default", str(sheet)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has the glyph
        figure = Figure(figsize=(width / 72, height / 72))
        yield figure, figure.add_subplot()


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes. The y label is set horizontally above its axis, where it is easier to read."""
    axes.set_xlabel(x)
    axes.set_title(y, fontsize="medium", color=CLASSICAL)


def use_log_scale(axes: Axes) -> None:
    """A logarithmic y axis, labelled 0.01, 0.001, 1e-05: matplotlib's own labels are formulas."""
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """A legend of everything labelled, below the axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=columns)


def save(figure: Figure, name: str, title: str, caption: str = "") -> Chart:
    """The figure as a chart; inside `drawing`. Coordinates are rounded, and no metadata are stored."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), " ".join(buffer.getvalue().split()))
    return Chart(name, title, svg, caption)
