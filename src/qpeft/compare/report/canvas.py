"""Charts as SVG text: equal figures give equal bytes, text stays text, colours are the page's.

A chart is drawn with the palette's light colours, which is what `plots/*.svg` keep. `inline` makes a copy for the page:
each colour becomes the CSS variable of the same name, so that one drawing serves light, dark and print.
One unit is one CSS pixel; a chart is made for a phone's width, and the page sets several side by side.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from qpeft.compare.report.numbers import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 344
FONT = 11.0
INK, MUTED, FAINT, PAPER = "#1c1d20", "#5d6067", "#d9d8d2", "#fefefd"
QUANTUM, CLASSICAL, CONTROL = "#1559b7", "#3f4248", "#a34a00"
VARIABLES = {
    INK: "ink", MUTED: "muted", FAINT: "faint", PAPER: "paper",
    QUANTUM: "quantum", CLASSICAL: "classical", CONTROL: "control",
}  # fmt: skip
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.family": ["DejaVu Sans"],  # ships with matplotlib; the page puts its own in its place
    "font.size": FONT,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1.0,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw and save within: the user's own matplotlib settings have no say. `name` keeps a chart's ids apart."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has the glyph
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of `width` by `height` pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(chart: Figure, left: float = 40, right: float = 10, top: float = 26, bottom: float = 36) -> Axes:
    """The chart's only axes, with margins in pixels."""
    width, height = (72 * inches for inches in chart.get_size_inches())
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    return chart.add_axes(box)


def titles(chart: Figure, plot: Axes, x: str, y: str) -> None:
    """Name the axes: y above its axis and level, where it can be read without turning one's head."""
    plot.set_xlabel(x, labelpad=4)
    chart.text(0, 1, y, color=MUTED, va="top", ha="left")


def short_ticks(plot: Axes) -> None:
    """Powers of ten as `1k`, `10k`, `1M` on a logarithmic x axis; below two decades 2s and 5s too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = plot.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    plot.xaxis.set_major_locator(MaxNLocator(5) if high / low < 5 else LogLocator(subs=subs, numticks=7))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_minor_formatter(NullFormatter())


def to_svg(chart: Figure) -> str:
    """The figure as a standalone SVG document: no date, and no finer than a hundredth of a pixel."""
    buffer = io.StringIO()
    chart.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), buffer.getvalue())


def inline(svg: str, name: str, title: str) -> Markup:
    """The `<svg>` element for the page: variables for colours, own ids, the page's font; `title` is read aloud."""
    opening, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    assert box is not None
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would reach the whole page
    body = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name), body)  # tags only: a label may look like an attribute
    body = re.sub(r">\s+<", "><", body)
    width = float(box[1]) * 1.2 / 16
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {box[1]} {box[2]}" '
        f'style="max-width:{width:g}rem">{body.strip()}'
    )


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return " ".join(tag.split())
