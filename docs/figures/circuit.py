"""A circuit, drawn from its own list of gates."""

import figure_style as style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from qpeft.circuits import Ansatz, Gate

BOX, STEP = 0.62, 36  # of a column; pixels of a column and of a wire


def draw(name: str, n_qubits: str, n_layers: str) -> Figure:
    ansatz = Ansatz(name, n_qubits=int(n_qubits), n_layers=int(n_layers))
    placed = place(list(ansatz.gates()))
    n_columns = 1 + max(column for column, _ in placed)
    chart = style.figure(height=STEP * ansatz.n_qubits, width=STEP * (n_columns + 1))
    plot = chart.subplots()
    plot.set(xlim=(-1, n_columns), ylim=(ansatz.n_qubits - 0.5, -0.5))
    plot.axis("off")
    for wire in range(ansatz.n_qubits):
        plot.plot((-0.5, n_columns - 0.4), (wire, wire), color=style.MUTED, linewidth=1, zorder=0)
        plot.text(-0.55, wire, f"q{wire}", color=style.MUTED, ha="right", va="center")
    for column, gate in placed:
        (turn if gate.slot is not None else join)(plot, column, gate)
    return chart


def place(gates: list[Gate]) -> list[tuple[int, Gate]]:
    """Each gate in the first column in which all wires that it spans are free."""
    free: dict[int, int] = {}
    found = []
    for gate in gates:
        spanned = range(min(gate.wires), max(gate.wires) + 1)
        column = max(free.get(wire, 0) for wire in spanned)
        free |= dict.fromkeys(spanned, column + 1)
        found.append((column, gate))
    return found


def turn(plot: Axes, column: int, gate: Gate) -> None:
    """A rotation: a box with the name of its axis."""
    (wire,) = gate.wires
    corner = (column - BOX / 2, wire - BOX / 2)
    plot.add_patch(Rectangle(corner, BOX, BOX, facecolor=style.PAPER, edgecolor=style.QUANTUM, linewidth=1.4))
    plot.text(column, wire, gate.name.upper(), color=style.QUANTUM, ha="center", va="center", fontsize=style.FONT - 1)


def join(plot: Axes, column: int, gate: Gate) -> None:
    """A line from the control, a dot, to the target: a cross for CNOT, a dot for CZ."""
    control, target = gate.wires
    plot.plot((column, column), (control, target), color=style.INK, linewidth=1.2, zorder=1)
    plot.add_patch(Circle((column, control), 0.1, color=style.INK, zorder=2))
    if gate.name.lower() == "cz":
        plot.add_patch(Circle((column, target), 0.1, color=style.INK, zorder=2))
        return
    plot.add_patch(Circle((column, target), 0.2, facecolor=style.PAPER, edgecolor=style.INK, linewidth=1.2, zorder=2))
    plot.plot((column, column), (target - 0.2, target + 0.2), color=style.INK, linewidth=1.2, zorder=3)
    plot.plot((column - 0.2, column + 0.2), (target, target), color=style.INK, linewidth=1.2, zorder=3)
