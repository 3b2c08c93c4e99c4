"""Quantum-PEFT's columns as a picture, and their products with each other: 1 with themselves, 0 with the others."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qpeft.circuits import Ansatz, basis_columns, two_design_columns
from qpeft.compare.report import canvas
from qpeft.diagnostics import random_angles

N_QUBITS, N_LAYERS, K = 5, 2, 8
CELL = 14  # pixels


def draw() -> Figure:
    angles = random_angles(Ansatz("two_design", N_QUBITS, N_LAYERS), samples=1)[0]
    u = two_design_columns(angles, N_QUBITS, N_LAYERS, basis_columns("spread", N_QUBITS, K))  # (32, 8)
    chart = canvas.figure(height=11 * 8 + CELL * 8 + 56)
    matrix(chart, u.T / u.abs().max(), "U transposed: its 8 columns, 32 numbers each", CELL * 8 + 30)
    matrix(chart, u.T @ u, "U^T U: the 8 columns with each other", 8)
    return chart


def matrix(chart: Figure, values: torch.Tensor, title: str, bottom: float) -> None:
    """Squares as strong as their values: blue above zero, orange with a dot below."""
    width, height = (72 * inches for inches in chart.get_size_inches())
    rows, columns = values.shape
    size = min(CELL, (width - 16) / columns)
    plot: Axes = chart.add_axes((8 / width, bottom / height, size * columns / width, size * rows / height))
    plot.set(xlim=(0, columns), ylim=(rows, 0))
    plot.axis("off")
    plot.set_title(title, loc="left", fontsize=canvas.FONT, color=canvas.MUTED)
    plot.add_patch(Rectangle((0, 0), columns, rows, fill=False, edgecolor=canvas.FAINT, linewidth=1.5))
    for row in range(rows):
        for column in range(columns):
            value = round(values[row, column].item(), 3)
            if abs(value) > 0.02:
                colour = canvas.QUANTUM if value > 0 else canvas.CONTROL
                plot.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=min(1, abs(value)), linewidth=0))
                if value < 0:
                    plot.plot(column + 0.5, row + 0.5, ".", color=canvas.INK, markersize=2)
