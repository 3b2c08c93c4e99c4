"""A circuit as text: one line per wire, boxes for rotations, vertical lines for gates on two wires."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpeft.circuits.ansatz import Ansatz, Gate

_ENDS = {"cx": "●⊕", "cz": "●●"}  # symbols on the two wires of a gate without a box


def draw(circuit: Ansatz, width: int) -> str:
    """`circuit` as text of at most `width` columns, or as wide as its first and last layer need."""
    labels = [f"q{wire} " for wire in range(circuit.n_qubits)]
    wide = len(labels[-1])
    names = [" " * wide, *(row for label in labels for row in (label.rjust(wide), " " * wide))][:-1]
    layers = [_layer(gates, circuit.n_qubits, index) for index, gates in enumerate(circuit.layers())]
    shown = _fit(layers, width - len(names[0]))
    return "\n".join("".join(row).rstrip() for row in zip(names, *shown, strict=True))


def _layer(gates: Iterable[Gate], n_qubits: int, index: int) -> list[str]:
    """A title line, then one line per wire with a line for connections between neighbouring wires."""
    columns = [_column(step, n_qubits) for step in _steps(gates, n_qubits) or [[]]]
    rows = ["".join(parts) + "─ "[row % 2] for row, parts in enumerate(zip(*columns, strict=True))]
    return [f" layer {index}".ljust(len(rows[0])), *rows]


def _steps(gates: Iterable[Gate], n_qubits: int) -> list[list[Gate]]:
    """Gates grouped into columns, each gate as far left as the wires it spans allow."""
    steps: list[list[Gate]] = []
    free = [0] * n_qubits  # first step in which a wire may be used
    for gate in gates:
        span = range(min(gate.wires), max(gate.wires) + 1)
        step = max(free[wire] for wire in span)
        steps += [[] for _ in range(step + 1 - len(steps))]
        steps[step].append(gate)
        for wire in span:
            free[wire] = step + 1
    return steps


def _column(step: list[Gate], n_qubits: int) -> list[str]:
    cells = ["─", " "] * n_qubits
    for gate in step:
        if len(gate.wires) == 1:
            cells[2 * gate.wires[0]] = f"┤ {gate.name.upper()} {_angle(gate)} ├"
            continue
        first, last = 2 * min(gate.wires), 2 * max(gate.wires)
        cells[first:last] = ["┼" if row % 2 == 0 else "│" for row in range(first, last)]
        for wire, symbol in zip(gate.wires, _ENDS[gate.name], strict=True):
            cells[2 * wire] = symbol
    wide = max(map(len, cells))
    return ["─ "[row % 2] + cell.center(wide, "─ "[row % 2]) for row, cell in enumerate(cells[:-1])]


def _angle(gate: Gate) -> str:
    """`θ[0,1]`, `-2 θ[0,1] + 0.5`, or `0.5`"""
    if gate.slot is None:
        return f"{gate.shift:.4g}"
    scale = "" if gate.scale == 1 else f"{gate.scale:.4g} "
    return f"{scale}θ[{','.join(map(str, gate.slot))}]" + (f" {gate.shift:+.4g}" if gate.shift else "")


def _fit(layers: list[list[str]], width: int) -> list[list[str]]:
    """As many first layers as fit, a gap with the number of omitted layers, and the last layer."""
    sizes = [len(layer[0]) for layer in layers]
    if sum(sizes) <= width or len(layers) <= 2:
        return layers
    gap = len(f" {len(layers) - 2} more ")
    keep = max(1, sum(total + gap + sizes[-1] <= width for total in accumulate(sizes[:-2])))
    title = f" {len(layers) - keep - 1} more "
    rows = [title, *("┄ "[row % 2] * len(title) for row in range(len(layers[0]) - 1))]
    return [*layers[:keep], rows, layers[-1]]
