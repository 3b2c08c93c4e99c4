"""How the gradient of QPA's circuit decreases with the number of qubits, for three observables."""

import figure_style as style
from matplotlib.figure import Figure

from qpeft.diagnostics import gradient_variance

WIDTHS = [4, 6, 8, 10]
OBSERVABLES = (
    ("scaled", "2^N p, the features of QPA", "o", style.QUANTUM),
    ("z_last", "⟨Z⟩ of the last wire", "^", style.CONTROL),
    ("p_0", "p of |0...0⟩", "s", style.CLASSICAL),
)


def draw() -> Figure:
    plot = style.axes(250, "qubits N, 8 layers", "variance of the gradient with respect to an angle (per rad²)")
    for observable, name, shape, colour in OBSERVABLES:
        found = gradient_variance(WIDTHS, [8], observable, samples=100)
        plot.plot(WIDTHS, found.variances[0], shape + "-", color=colour, label=name)
    plot.set_yscale("log")
    plot.set_yticks(
        [10.0**-n for n in range(7)], ["1", *(f"10{power}" for power in ("⁻¹", "⁻²", "⁻³", "⁻⁴", "⁻⁵", "⁻⁶"))]
    )
    plot.legend(loc="lower left")
    return plot.figure
