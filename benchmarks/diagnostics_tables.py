"""The diagnostics of random QPA circuits, compared with the tables of the specification (simulation, section E).

    python benchmarks/diagnostics_tables.py             # every table, some minutes on one core
    python benchmarks/diagnostics_tables.py gradients   # or widths, depths, shapes, fidelities, slopes, ranks
    python benchmarks/diagnostics_tables.py widths depths --circuits 20

Each value is measured ten times on new circuits: as many as in the specification for gradients, otherwise `--circuits`
(200). "measured" is the mean of the ten and its standard error. The specified value is one such measurement, so it
agrees if it lies in the interval of 99 % of further ones (Student's t), widened by its own rounding.
"""

from __future__ import annotations

import argparse
import math
import statistics
from decimal import Decimal

from scipy.special import stdtrit

from qpeft.circuits import Ansatz
from qpeft.diagnostics import (
    PorterThomas,
    expressibility,
    gradient_variance,
    meyer_wallach,
    porter_thomas,
    random_states,
    redundancy,
)
from qpeft.diagnostics.states import random_angles

REPEATS = 10
PAIRS = 12_000  # not specified; these have its floor, 0.0021
LADDER = "ry_ladder"

WIDTHS = {  # N: KS real, KS complex, IPR, entropy, Meyer-Wallach, at 8 layers
    4: (".010", ".155", "2.62", "2.115", ".770"),
    6: (".016", ".177", "3.13", "3.403", ".923"),
    8: (".025", ".187", "3.47", "4.737", ".963"),
    10: (".041", ".200", "3.87", "6.064", ".976"),
    12: (".055", ".210", "4.36", "7.387", ".980"),
}
DEPTHS = {  # N, L: IPR, KS real
    (8, 16): ("2.99", ".008"),
    (10, 12): ("3.15", None),
    (10, 16): ("2.995", ".006"),
    (12, 12): ("3.23", None),
    (12, 16): ("3.03", ".003"),
    (12, 24): ("2.996", None),
    (8, 1): ("25.7", None),
    (8, 2): ("11.5", None),
    (8, 3): ("8.6", None),
    (8, 4): ("6.2", None),
    (8, 6): ("4.3", None),
}
FIDELITIES = {(8, 2): ".169", (8, 4): ".0119", (8, 8): ".0022", (8, 16): ".0021", (10, 8): ".0022"}
QUBITS = (5, 6, 8, 10, 12)
GRADIENTS = {  # L, observable: a value for each of the widths, and the slope
    (8, "z_first"): (("3.1e-2", "2.0e-2", "1.5e-2", "1.05e-2", "9.9e-3"), None),
    (8, "z_last"): (("3.0e-2", "1.7e-2", "4.3e-3", "1.04e-3", "2.9e-4"), "-1"),
    (8, "p_0"): (("1.0e-3", "2.4e-4", "1.5e-5", "1.1e-6", "9e-8"), "-1.9"),
    (8, "random"): (("3.4e-2", "1.6e-2", "5.1e-3", "1.4e-3", "3.6e-4"), "-1"),
    (64, "z_last"): (("3.1e-2", "1.7e-2", "3.9e-3", "1.06e-3", "2.5e-4"), "-1"),
    (64, "p_0"): (("1.0e-3", "2.2e-4", "1.7e-5", "9.8e-7", "7.0e-8"), "-2"),
}
RANKS = (1, 3, 7, 15, 31, 48, 56, 64)


def main() -> None:
    tables = {table.__name__: table for table in (widths, depths, shapes, fidelities, gradients, slopes, ranks)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*tables, []], metavar="table", help="all without")
    parser.add_argument("--circuits", type=int, default=200, help="of each of the ten measurements of probabilities")
    arguments = parser.parse_args()
    for name in arguments.tables or tables:
        print(f"\n{name}\n")
        tables[name](arguments.circuits)


def widths(circuits: int) -> None:
    """Porter-Thomas and entanglement by width."""
    for n, specified in WIDTHS.items():
        measured = [random_circuits(n, 8, seed, circuits) for seed in range(REPEATS)]
        values_of = [(f.distance, f.other_distance, f.ipr, f.entropy, q) for f, q in measured]
        names = ("KS real", "KS complex", "IPR", "entropy", "Meyer-Wallach")
        for name, wanted, values in zip(names, specified, zip(*values_of, strict=True), strict=True):
            compare(f"N={n} L=8 {name}", wanted, values)


def depths(circuits: int) -> None:
    """Porter-Thomas by depth."""
    for (n, depth), (ipr, distance) in DEPTHS.items():
        found = [random_circuits(n, depth, seed, circuits)[0] for seed in range(REPEATS)]
        compare(f"N={n} L={depth} IPR", ipr, [each.ipr for each in found])
        compare(f"N={n} L={depth} KS real", distance, [each.distance for each in found])


def shapes(circuits: int) -> None:
    """Not in the specification: the depth from which circuits are indistinguishable from random states."""
    print(f"{'N':>3} {'L':>3} {'L/N':>5} {'IPR / expected':>16} {'KS real':>8}  sets of {circuits} with p < 0.01")
    for n in QUBITS:
        for depth in sorted({math.ceil(share * n) for share in (0.75, 1, 1.25, 1.5, 1.75, 2)} | {8}):
            found = [random_circuits(n, depth, seed, circuits)[0] for seed in range(REPEATS)]
            ratio = statistics.fmean(each.ipr / each.expected_ipr for each in found)
            distance = statistics.fmean(each.distance for each in found)
            told = sum(each.p_value < 0.01 for each in found)
            print(f"{n:>3} {depth:>3} {depth / n:>5.2f} {ratio:>16.3f} {distance:>8.4f}  {told} of {REPEATS}")


def fidelities(_: int) -> None:
    """Expressibility."""
    for (n, depth), specified in FIDELITIES.items():
        found = [expressibility(Ansatz(LADDER, n, depth), PAIRS, seed) for seed in range(REPEATS)]
        compare(f"N={n} L={depth} KL real", specified, [each.divergence for each in found])
        complex_ = statistics.fmean(each.complex_divergence for each in found)
        print(f"{'':22} KL complex {complex_:.3f} (.166 to .176 as specified for N=8), floor {found[0].floor:.4f}")


def gradients(_: int) -> None:
    """Gradient variance by width, layer in the middle; 200 circuits at 8 layers, 100 at 64."""
    for (depth, observable), (specified, slope) in GRADIENTS.items():
        samples = 200 if depth == 8 else 100
        found = [gradient_variance(QUBITS, [depth], observable, samples, seed) for seed in range(REPEATS)]
        by_width = zip(*(each.variances[0] for each in found), strict=True)
        for n, wanted, values in zip(QUBITS, specified, by_width, strict=True):
            compare(f"L={depth} {observable} N={n}", wanted, values)
        compare(f"L={depth} {observable} slope", slope, [each.slopes[0] for each in found])


def slopes(_: int) -> None:
    """Of QPA's features: r.m.s. of d(2^N p)/d angle, 0.9 to 1.5 as specified for N = 4 to 10 at 8 and 32 layers."""
    for depth in (8, 32):
        result = gradient_variance((4, 5, 6, 7, 8, 9, 10), [depth], "scaled", 1000)
        values = ", ".join(f"{math.sqrt(v):.2f}" for v in result.variances[0])
        print(f"L={depth}: {values}; slope of log2 variance {result.slopes[0]:+.3f} ± {result.slope_errors[0]:.3f}")


def ranks(_: int) -> None:
    """Rank of the Jacobian at 8 layers, N = 1 to 8."""
    found = []
    for n in range(1, 9):
        ansatz = Ansatz(LADDER, n, 8)
        found.append([redundancy(ansatz, angles).rank for angles in random_angles(ansatz, REPEATS, seed=n)])
    print("specified", *RANKS)
    print("measured ", *("/".join(map(str, sorted(set(each)))) for each in found))


def random_circuits(n_qubits: int, n_layers: int, seed: int, circuits: int) -> tuple[PorterThomas, float]:
    states = random_states(Ansatz(LADDER, n_qubits, n_layers), circuits, seed)
    return porter_thomas(states.square()), meyer_wallach(states).mean


def compare(name: str, specified: str | None, values) -> None:
    """One line: as specified, measured here, and whether they agree."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    line = f"{name:26} measured {mean:.4g} ± {spread / math.sqrt(len(values)):.2g}"
    if specified is not None:
        rounding = 10.0 ** Decimal(specified).as_tuple().exponent / 2
        reach = stdtrit(len(values) - 1, 0.995) * spread * math.sqrt(1 + 1 / len(values)) + rounding
        verdict = "agrees" if abs(float(specified) - mean) <= reach else "DIFFERS"
        line += f", specified {specified}, one such measurement lies within ± {reach:.2g}: {verdict}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
