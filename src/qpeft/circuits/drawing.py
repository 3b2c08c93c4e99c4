"""A circuit as text: one line per wire, boxes for rotations, vertical lines for gates on two wires."""

from __future__ import annotations

from collections.abc import Iterable

from qpeft.circuits.circuit import Circuit, Gate

_ENDS = {"cx": "●⊕", "cz": "●●"}  # symbols on the two wires of a gate without a box


def draw(circuit: Circuit, width: int) -> str:
    """`circuit` as text of at most `width` columns, or as wide as its first and last layer need."""
    names = _names(circuit.n_qubits)
    layers = [_layer(gates, circuit.n_qubits, index) for index, gates in enumerate(circuit.layers())]
    shown = _fit(layers, width - len(names[0]))
    return "\n".join("".join(row).rstrip() for row in zip(names, *shown, strict=True))


def _names(n_qubits: int) -> list[str]:
    labels = [f"q{wire} " for wire in range(n_qubits)]
    wide = max(map(len, labels))
    rows = [" " * wide]
    for label in labels:
        rows += [label.rjust(wide), " " * wide]
    return rows[:-1]


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
        if gate.slot is not None:
            angle = ",".join(map(str, gate.slot))
            cells[2 * gate.wires[0]] = f"┤ {gate.name.upper()} θ[{angle}] ├"
            continue
        first, last = 2 * min(gate.wires), 2 * max(gate.wires)
        cells[first:last] = ["┼" if row % 2 == 0 else "│" for row in range(first, last)]
        for wire, symbol in zip(gate.wires, _ENDS[gate.name], strict=True):
            cells[2 * wire] = symbol
    wide = max(map(len, cells))
    return ["─ "[row % 2] + cell.center(wide, "─ "[row % 2]) for row, cell in enumerate(cells[:-1])]


def _fit(layers: list[list[str]], width: int) -> list[list[str]]:
    """As many first layers as fit, a gap with the number of omitted layers, and the last layer."""
    sizes = [len(layer[0]) for layer in layers]
    if sum(sizes) <= width or len(layers) <= 2:
        return layers
    keep = 1
    while sum(sizes[: keep + 1]) + sizes[-1] + len(_gap(layers, keep)[0]) <= width:
        keep += 1
    return [*layers[:keep], _gap(layers, keep), layers[-1]]


def _gap(layers: list[list[str]], keep: int) -> list[str]:
    title = f" {len(layers) - keep - 1} more "
    return [title, *("┄ "[row % 2] * len(title) for row in range(len(layers[0]) - 1))]
