"""The probabilities of one circuit of 5 qubits at random angles, scaled so that their mean is 1."""

import figure_style as style
import numpy as np
from matplotlib.figure import Figure

from qpeft.circuits import Ansatz
from qpeft.diagnostics import random_probabilities


def draw() -> Figure:
    scaled = 32 * random_probabilities(Ansatz("ry_ladder", n_qubits=5, n_layers=8), samples=1, seed=3)[0].numpy()
    plot = style.axes(190, "basis state j", "scaled probability, 2^N p")
    plot.bar(np.arange(32), scaled, color=style.QUANTUM, width=0.75)
    plot.axhline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    plot.set_xticks([0, 8, 16, 24, 31])
    return plot.figure
