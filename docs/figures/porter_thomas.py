"""The distribution of QPA's scaled probabilities at random angles, and those of random real and complex states."""

import figure_style as style
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi2, expon

from qpeft.circuits import Ansatz
from qpeft.diagnostics import random_probabilities

BINS = np.linspace(0, 9, 37)


def draw() -> Figure:
    plot = style.axes(240, "scaled probability x = 2^N p, 7 qubits", "density of x")
    middle = (BINS[1:] + BINS[:-1]) / 2
    for layers, shape, colour in ((2, "^", style.CONTROL), (8, "o", style.QUANTUM)):
        x = 2**7 * random_probabilities(Ansatz("ry_ladder", n_qubits=7, n_layers=layers), samples=200).numpy()
        counts, _ = np.histogram(x, BINS)
        density = counts / x.size / np.diff(BINS)
        plot.plot(middle, density, shape, color=colour, markersize=4, label=f"{layers} layers, 200 circuits")
    for law, name, dashes in ((chi2(1), "random real states", "-"), (expon(), "random complex states", (0, (4, 3)))):
        plot.plot(middle, np.diff(law.cdf(BINS)) / np.diff(BINS), color=style.INK, linestyle=dashes, label=name)
    plot.set_yscale("log")
    plot.set_ylim(3e-4, 3)
    plot.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.001", "0.01", "0.1", "1"])
    plot.legend(loc="upper right")
    return plot.figure
