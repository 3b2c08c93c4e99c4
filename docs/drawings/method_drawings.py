"""Drawings of the adapters: what is trained, what is generated from it, and what is stored.

`python docs/drawings/method_drawings.py`, a part of `make results`, writes them to docs/static from the
descriptions in method_drawings.yaml. The gates are those that qpeft simulates or applies, and the
numbers are those of `qpeft.plan` for one linear map. A drawing is narrow, so that it can be read on a
telephone, and has a light and a dark form.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import yaml
from torch import nn

import qpeft
from qpeft.circuits import Ansatz, Gate
from qpeft.methods.quanta.model import pairs

STATIC = Path(__file__).resolve().parents[1] / "static"
DESCRIPTIONS = Path(__file__).with_suffix(".yaml")

# all sizes are in pixels
WIDTH = 360
MARGIN = 12
GAP = 10  # between the items of a row
LINE = 16  # the height of a line of text
LETTER = 7  # the width of a letter, at most on average
STEP = 22  # between the wires and the columns of a circuit
GATE = 16  # the side of a gate
VALUES = 104  # where the second column of the table begins

# the classes of STYLE that have a color, and their names in the table
KINDS = {
    "trained": "trained",
    "generated": "generated",
    "frozen": "frozen",
    "token": "each token",
}

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1c1d20 }
.label, .key { fill: #5d6067 }
.operator { font-size: 15px }
.gate-name { font-size: 10px }
.card { fill: #ffffff; stroke: #d9d8d2 }
.line { stroke: #8a8d94; fill: none }
.dot { fill: #8a8d94 }
.empty { fill: none; stroke: #8a8d94; stroke-dasharray: 2 2 }
.trained { fill: #cfe0f8; stroke: #1559b7; stroke-width: 1.5 }
.generated { fill: #fbe0cb; stroke: #a34a00; stroke-dasharray: 4 2 }
.frozen { fill: #e7e6e1; stroke: #8a8d94 }
.token { fill: #d5ecdd; stroke: #1a7a4c }
@media (prefers-color-scheme: dark) {
  text { fill: #e9e8e4 }
  .label, .key { fill: #b1b3b8 }
  .card { fill: #1b1d21; stroke: #3a3d43 }
  .trained { fill: #173a6b; stroke: #7fb0f5 }
  .generated { fill: #54300f; stroke: #eda36b }
  .frozen { fill: #33363b; stroke: #8a8d94 }
  .token { fill: #17432c; stroke: #6cc795 }
}
"""


class Shape(NamedTuple):
    """SVG elements inside a box with its corner at 0, 0."""

    elements: list[str]
    width: float
    height: float


def rectangle(kind: str, x: float, y: float, width: float, height: float, rx: float = 0) -> str:
    box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect class="{kind}" {box} rx="{rx:g}"/>'


def text(kind: str, x: float, y: float, content: str, anchor: str = "middle") -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(content)}</text>'


def line(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline class="line" points="{path}"/>'


def matrix(kind: str, width: float, height: float, blocks: Sequence[float] = ()) -> Shape:
    """A rectangle in the proportions of the matrix; of a block-diagonal one the blocks."""
    if not blocks:
        return Shape([rectangle(kind, 0, 0, width, height)], width, height)
    elements = [rectangle("empty", 0, 0, width, height)]
    corner = 0.0
    for side in blocks:
        elements.append(rectangle(kind, corner, corner, side, side))
        corner += side
    return Shape(elements, width, height)


def bars(kind: str, *heights: float) -> Shape:
    """A bar for each probability."""
    high = max(heights)
    elements = [rectangle(kind, 9 * i, high - h, 6, h) for i, h in enumerate(heights)]
    return Shape(elements, 9 * len(heights) - 3, high)


def circuit(kind: str, ansatz: str, n_wires: int, n_layers: int) -> Shape:
    """The gates of a circuit of qpeft, each in the first free column of its wires."""
    return wires(kind, n_wires, Ansatz(ansatz, n_wires, n_layers).gates())


def axes(kind: str, n_axes: int) -> Shape:
    """QuanTA's gates: a wire is an axis of the reshaped input."""
    gates = [Gate("pair", (n_axes + b, n_axes + a)) for b, a in pairs(n_axes)]
    return wires(kind, n_axes, gates)


def wires(kind: str, n_wires: int, gates: Iterable[Gate]) -> Shape:
    free = [0] * n_wires  # the first free column of each wire
    drawn = []
    for gate in gates:
        span = slice(min(gate.wires), max(gate.wires) + 1)
        column = max(free[span])
        free[span] = [column + 1] * len(free[span])
        drawn += _gate(kind, gate, (column + 1) * STEP)
    width = (max(free) + 1) * STEP
    lines = [line((0, _wire(wire)), (width, _wire(wire))) for wire in range(n_wires)]
    return Shape(lines + drawn, width, n_wires * STEP)


def _wire(wire: int) -> float:
    return (wire + 0.5) * STEP


def _gate(kind: str, gate: Gate, x: float) -> list[str]:
    heights = [_wire(wire) for wire in gate.wires]
    elements = []
    if len(heights) == 2:
        elements.append(line((x, heights[0]), (x, heights[1])))
    for y, is_target in zip(heights, (False, gate.name == "cx"), strict=False):
        if gate.name not in ("cx", "cz"):
            corner = (x - GATE / 2, y - GATE / 2)
            elements.append(rectangle(kind, *corner, GATE, GATE, 2))
        elif is_target:
            elements.append(f'<circle class="line" cx="{x:g}" cy="{y:g}" r="6"/>')
            elements += [line((x - 6, y), (x + 6, y)), line((x, y - 6), (x, y + 6))]
        else:
            elements.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="3.5"/>')
    if gate.slot is not None:
        elements.append(text("gate-name", x, heights[0] + 3.5, gate.name[1:].upper()))
    return elements


SHAPES = {"matrix": matrix, "bars": bars, "circuit": circuit, "axes": axes}


def row(items: list[Any], top: float) -> Shape:
    """Items side by side; a text between them is an operator."""
    cells = []
    for item in items:
        if isinstance(item, str):
            width = 9.0 * len(item)
            cells.append((Shape([text("operator", width / 2, 5, item)], width, 0), []))
        else:
            name = next(name for name in SHAPES if name in item)
            shape = SHAPES[name](item["kind"], *item[name])
            cells.append((shape, item["label"].split("\n")))
    widths = [max(shape.width, *(LETTER * len(t) for t in [*label, ""])) for shape, label in cells]
    high = max(shape.height for shape, _ in cells)
    x = (WIDTH - sum(widths) - GAP * (len(cells) - 1)) / 2
    elements = []
    for (shape, label), width in zip(cells, widths, strict=True):
        corner = f"{x + (width - shape.width) / 2:g} {top + (high - shape.height) / 2:g}"
        elements += [f'<g transform="translate({corner})">', *shape.elements, "</g>"]
        for i, words in enumerate(label):
            elements.append(text("label", x + width / 2, top + high + LINE * (i + 1), words))
        x += width + GAP
    n_lines = max(len(label) for _, label in cells)
    return Shape(elements, WIDTH, high + LINE * n_lines + 6)


def arrow(words: str, top: float) -> Shape:
    """Down, from one row to the next, with what happens there."""
    x = MARGIN + 24
    end = top + 24
    head = line((x - 4, end - 6), (x, end), (x + 4, end - 6))
    shaft = line((x, top + 2), (x, end))
    return Shape([shaft, head, text("label", x + 12, top + 17, words, "start")], WIDTH, 34)


def table(rows: dict[str, str], top: float) -> Shape:
    """What is trained, generated and stored; the color of a kind stands next to its name."""
    y = top + 12
    elements = [line((MARGIN, top), (WIDTH - MARGIN, top))]
    for key, words in rows.items():
        if key in KINDS:
            elements.append(rectangle(key, MARGIN, y, 10, 10))
        elements.append(text("key", MARGIN + 16, y + 10, KINDS.get(key, key), "start"))
        for words_of_line in textwrap.wrap(words, (WIDTH - VALUES - MARGIN) // LETTER):
            elements.append(text("value", VALUES, y + 10, words_of_line, "start"))
            y += LINE
        y += 4
    return Shape(elements, WIDTH, y - top)


class OneMap(nn.Module):
    """The base of which the drawings count parameters."""

    def __init__(self, size: int = 768) -> None:
        super().__init__()
        self.map = nn.Linear(size, size, bias=False)


def drawing(description: dict[str, Any]) -> str:
    """The SVG of one description."""
    fields = dict(description["plan"])
    config = getattr(qpeft, fields.pop("config"))(target_modules=["map"], **fields)
    counts = vars(qpeft.plan(OneMap(), config))
    elements = []
    y = float(MARGIN)
    for part in description["flow"]:
        shape = arrow(part, y) if isinstance(part, str) else row(part, y)
        elements += shape.elements
        y += shape.height
    rows = {key: words.format(**counts) for key, words in description["table"].items()}
    last = table(rows, y + 8)
    high = y + 8 + last.height + MARGIN
    card = rectangle("card", 0.5, 0.5, WIDTH - 1, high - 1, 6)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{high:g}" '
    head += f'viewBox="0 0 {WIDTH} {high:g}" role="img">'
    title = f"<title>{escape(description['title'])}</title>"
    return "\n".join(
        [head, title, f"<style>{STYLE}</style>", card, *elements, *last.elements, "</svg>\n"]
    )


def drawings() -> dict[Path, str]:
    """The SVG of each file."""
    descriptions = yaml.safe_load(DESCRIPTIONS.read_text(encoding="utf-8"))
    return {STATIC / f"{name}.svg": drawing(own) for name, own in descriptions.items()}


def main() -> None:
    for file, svg in drawings().items():
        file.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
