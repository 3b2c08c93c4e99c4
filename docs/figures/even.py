"""QAA's features while the input rotates once: they have a period of half a turn, where x becomes -x."""

import math

import figure_style as style
import torch
from matplotlib.figure import Figure

from qpeft.circuits import amplitude_expectations

WIDTH, N = 8, 3


def draw() -> Figure:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.linalg.qr(torch.randn(WIDTH, 2, generator=generator, dtype=torch.float64)).Q.T
    turn = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    x = turn.cos()[:, None] * one + turn.sin()[:, None] * other  # (121, 8)
    angles = torch.rand(1, 3, N, generator=generator, dtype=torch.float64) * 2 * math.pi
    features = amplitude_expectations(x, angles)  # (121, 3)
    plot = style.axes(230, "rotation of the input x in degrees (180: minus x)", "feature")
    for n, dashes in enumerate(("-", (0, (6, 2)), (0, (1.5, 1.5)))):
        plot.plot(turn * 180 / math.pi, features[:, n], color=style.QUANTUM, linestyle=dashes, label=f"QAA, z{n}")
    plot.plot(turn * 180 / math.pi, x @ one, color=style.CONTROL, label="linear")
    plot.axvline(180, color=style.MUTED, linewidth=1, linestyle=(0, (2, 3)))
    plot.set_xticks([0, 90, 180, 270, 360])
    plot.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return plot.figure
