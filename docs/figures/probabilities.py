"""The probabilities of one circuit of 5 qubits at its seeded kind of start, scaled so that their mean is 1."""

import numpy as np
from matplotlib.figure import Figure

from qpeft.circuits import Ansatz
from qpeft.compare.report import canvas
from qpeft.diagnostics import random_probabilities


def draw() -> Figure:
    scaled = 32 * random_probabilities(Ansatz("ry_ladder", n_qubits=5, n_layers=8), samples=1, seed=3)[0].numpy()
    chart = canvas.figure(height=190)
    plot = canvas.axes(chart)
    plot.bar(np.arange(32), scaled, color=canvas.QUANTUM, width=0.75)
    plot.axhline(1, color=canvas.INK, linewidth=1, linestyle=(0, (4, 3)))
    plot.set_xticks([0, 8, 16, 24, 31])
    canvas.titles(chart, plot, "basis state c, which is the chunk it stands for", "scaled probability, 2^N p")
    return chart
