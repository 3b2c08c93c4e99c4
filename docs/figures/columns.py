"""Quantum-PEFT's columns, and their inner products: 1 of each with itself, 0 of two different ones."""

import figure_style as style
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qpeft.circuits import Ansatz, basis_columns, two_design_columns
from qpeft.diagnostics import random_angles

N_QUBITS, N_LAYERS, K = 5, 2, 8


def draw() -> Figure:
    angles = random_angles(Ansatz("two_design", N_QUBITS, N_LAYERS), samples=1)[0]
    u = two_design_columns(angles, N_QUBITS, N_LAYERS, basis_columns("spread", N_QUBITS, K))  # (32, 8)
    chart = style.figure(height=320)
    above, below = chart.subplots(2)
    matrix(above, u.T / u.abs().max(), "U transposed: its 8 columns, 32 entries each")
    matrix(below, u.T @ u, "U^T U: inner products of the 8 columns")
    return chart


def matrix(plot: Axes, values: torch.Tensor, title: str) -> None:
    """Each value as a square of that opacity: blue above zero, orange with a dot below."""
    rows, columns = values.shape
    plot.set_aspect("equal", anchor="W")
    plot.set(xlim=(0, max(columns, 32)), ylim=(rows, 0))
    plot.axis("off")
    plot.set_title(title)
    plot.add_patch(Rectangle((0, 0), columns, rows, fill=False, edgecolor=style.FAINT, linewidth=1.5))
    for row in range(rows):
        for column in range(columns):
            value = round(values[row, column].item(), 3)
            if abs(value) > 0.02:
                colour = style.QUANTUM if value > 0 else style.CONTROL
                plot.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=min(1, abs(value)), linewidth=0))
                if value < 0:
                    plot.plot(column + 0.5, row + 0.5, ".", color=style.INK, markersize=2)
