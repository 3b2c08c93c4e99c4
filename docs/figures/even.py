"""QAA's features while the input turns once around: they are back after half a turn, where it is its negative."""

import math

import torch
from matplotlib.figure import Figure

from qpeft.circuits import amplitude_expectations
from qpeft.compare.report import canvas

WIDTH, N = 8, 3


def draw() -> Figure:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.linalg.qr(torch.randn(WIDTH, 2, generator=generator, dtype=torch.float64)).Q.T
    turn = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    x = turn.cos()[:, None] * one + turn.sin()[:, None] * other  # (121, 8)
    angles = torch.rand(1, 3, N, generator=generator, dtype=torch.float64) * 2 * math.pi
    features = amplitude_expectations(x, angles)  # (121, 3)
    chart = canvas.figure(height=230)
    plot = canvas.axes(chart, right=64)
    for n, dashes in enumerate(("-", (0, (6, 2)), (0, (1.5, 1.5)))):
        plot.plot(turn * 180 / math.pi, features[:, n], color=canvas.QUANTUM, linestyle=dashes)
        plot.annotate(
            f"QAA, z{n}", (360, features[-1, n]), (4, 0), textcoords="offset points", va="center", color=canvas.QUANTUM
        )
    linear = x @ one
    plot.plot(turn * 180 / math.pi, linear, color=canvas.CONTROL)
    plot.annotate("linear", (360, linear[-1]), (4, 0), textcoords="offset points", va="center", color=canvas.CONTROL)
    plot.axvline(180, color=canvas.MUTED, linewidth=1, linestyle=(0, (2, 3)))
    plot.set_xticks([0, 90, 180, 270, 360])
    canvas.titles(chart, plot, "angle by which the input x is turned, in degrees (180: minus x)", "feature")
    return chart
