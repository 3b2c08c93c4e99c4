"""Expressibility: how evenly a circuit with random angles covers all states."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as of_dataclass

import numpy as np
from scipy.special import chdtri, gammaln, xlogy
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.diagnostics.finding import Measurement, floats
from qpeft.diagnostics.haar import Floats, HaarLaw
from qpeft.diagnostics.states import check_positive, circuit_states, field_of, random_angles
from qpeft.errors import ConfigError

_AT_ONCE = 2**21  # amplitudes


@dataclass(frozen=True)
class Expressibility(Measurement):
    """Fidelities F = `|<a|b>|^2` of pairs of states compared with those of random states.

    `divergence` is the Kullback-Leibler divergence, in nats, from the law of random states of the same `field`, and
    `complex_divergence` that from the law of complex ones. The estimate is positive even for random states: `floor`
    is its mean for them with the same numbers of pairs and bins, and 95 of 100 such estimates lie below
    `floor_limit`. `shares` are the fractions of pairs in bins that random states fill equally.
    """

    n_qubits: int
    n_pairs: int
    n_bins: int
    divergence: float
    complex_divergence: float
    field: str  # "real" or "complex"
    floor: float
    floor_limit: float
    shares: tuple[float, ...] = of_dataclass(repr=False)

    @property
    def sentence(self) -> str:
        found = f"divergence {self.divergence:.2g}, floor {self.floor:.2g}"
        if self.divergence <= self.floor_limit:
            return f"States at random angles overlap like random states, judged by {self.n_pairs:,} pairs ({found})."
        if self.divergence <= 2 * self.floor_limit:
            return f"States at random angles overlap almost like random states ({found})."
        alike = self.shares[-1] > 1 / self.n_bins
        reason = "too many pairs are alike" if alike else "the overlaps differ from those of random states"
        return f"States at random angles do not cover all {self.field} states evenly: {reason} ({found})."


def expressibility(ansatz: Ansatz, samples: int = 2000, seed: int = 0, n_bins: int = 50) -> Expressibility:
    """Kullback-Leibler divergence of the fidelities of `samples` independent pairs of states of the `ansatz`.

    Their angles are random, drawn from `seed`. The fidelity of two random real states follows Beta(1/2, (D-1)/2), that
    of complex ones, to which circuits with RX or RZ are compared, Beta(1, D-1). Its
    distribution function maps it to the uniform law, where the `n_bins` bins have equal widths; equal bins of F on
    [0, 1] would put all fidelities of a wide circuit into the first bin and could not distinguish circuits.

    Raises:
        ConfigError: samples or n_bins below 1 or 2, or fewer samples than bins.
    """
    check_positive(samples=samples, n_bins=n_bins)
    if n_bins < 2 or samples < n_bins:
        raise ConfigError(f"n_bins must be at least 2 and at most samples, got {n_bins} bins and {samples} samples")
    return of_fidelities(_fidelities(ansatz, samples, seed), ansatz.n_qubits, n_bins, field_of(ansatz))


def of_fidelities(fidelities: Floats, n_qubits: int, n_bins: int = 50, field: str = "real") -> Expressibility:
    """The measurement from fidelities (pairs,) of independent pairs of states of N qubits, from any source."""
    law, n_pairs = HaarLaw(field, 2**n_qubits), len(fidelities)
    of_complex = HaarLaw("complex", 2**n_qubits)
    shares = _shares(fidelities, law, n_bins)
    return Expressibility(
        n_qubits=n_qubits,
        n_pairs=n_pairs,
        n_bins=n_bins,
        divergence=_divergence(shares),
        complex_divergence=_divergence(_shares(fidelities, of_complex, n_bins)),
        field=field,
        floor=_floor(n_pairs, n_bins),
        floor_limit=float(chdtri(n_bins - 1, 0.05) / (2 * n_pairs)),
        shares=floats(shares),
    )


def _fidelities(ansatz: Ansatz, n_pairs: int, seed: int) -> Floats:
    angles = random_angles(ansatz, 2 * n_pairs, seed).unflatten(0, (n_pairs, 2))
    at_once = max(1, _AT_ONCE >> (ansatz.n_qubits + 1))
    return np.concatenate([_of_pairs(ansatz, part) for part in angles.split(at_once)])


def _of_pairs(ansatz: Ansatz, angles: Tensor) -> Floats:
    """(pairs, 2, *angle_shape) -> (pairs,)."""
    pairs = circuit_states(ansatz, angles.flatten(0, 1)).unflatten(0, (-1, 2))
    return (pairs[:, 0].conj() * pairs[:, 1]).sum(1).abs().square().clamp(max=1).numpy()


def _shares(fidelities: Floats, law: HaarLaw, n_bins: int) -> Floats:
    bins = np.minimum((n_bins * law.cdf(fidelities)).astype(int), n_bins - 1)
    return np.bincount(bins, minlength=n_bins) / len(fidelities)


def _divergence(shares: Floats) -> float:
    """sum_b s_b ln(s_b n): the divergence from the uniform law over n bins."""
    return float(xlogy(shares, shares * len(shares)).sum())


def _floor(n_pairs: int, n_bins: int) -> float:
    """Mean divergence of pairs that follow the law: the count of each bin is binomial."""
    counts = np.arange(1, n_pairs + 1)
    ways = gammaln(n_pairs + 1) - gammaln(counts + 1) - gammaln(n_pairs - counts + 1)
    chances = np.exp(ways + xlogy(counts, 1 / n_bins) + xlogy(n_pairs - counts, 1 - 1 / n_bins))
    shares = counts / n_pairs
    return float(n_bins * (chances * xlogy(shares, shares * n_bins)).sum())
