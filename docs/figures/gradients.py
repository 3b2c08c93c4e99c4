"""How the gradients of QPA's circuit fall with its width: of an expectation, and of what QPA reads."""

from matplotlib.figure import Figure

from qpeft.compare.report import canvas
from qpeft.diagnostics import gradient_variance

WIDTHS = [4, 6, 8, 10]
OBSERVABLES = (
    ("scaled", "2^N p, which QPA reads", "o", canvas.QUANTUM),
    ("z_last", "⟨Z⟩ of the last wire", "^", canvas.CONTROL),
    ("p_0", "p of |0...0⟩", "s", canvas.CLASSICAL),
)


def draw() -> Figure:
    chart = canvas.figure(height=250)
    plot = canvas.axes(chart)
    for observable, name, shape, colour in OBSERVABLES:
        found = gradient_variance(WIDTHS, [8], observable, samples=100)
        plot.plot(WIDTHS, found.variances[0], shape + "-", color=colour, label=name)
    plot.set_yscale("log")
    plot.set_yticks(
        [10.0**-n for n in range(7)], ["1", *(f"10{power}" for power in ("⁻¹", "⁻²", "⁻³", "⁻⁴", "⁻⁵", "⁻⁶"))]
    )
    plot.legend(frameon=False, fontsize=canvas.FONT - 1, labelcolor=canvas.INK, loc="lower left")
    canvas.titles(chart, plot, "qubits N, 8 layers", "variance of the gradient by an angle (per rad²)")
    return chart
