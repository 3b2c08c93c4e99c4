"""Whether a circuit's probabilities follow the distribution of random states: the Porter-Thomas law."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from dataclasses import field as of_dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from qpeft.diagnostics.finding import Measurement, floats
from qpeft.diagnostics.haar import Floats, HaarLaw
from qpeft.diagnostics.states import generator
from qpeft.errors import ConfigError

_GRID = 4096  # quantiles at which distances are computed: more would add less than 1/4096
_RESAMPLES = 199  # simulated data sets: the smallest p-value is 1/200
_TESTED = 2**15  # maximum number of probabilities tested, so that the test takes a fraction of a second
_HINT, _SHOWN = 0.05, 0.01  # p-values below which the evidence of a difference is weak, and below which it is strong
_CLOSE = 0.05  # distances above it are large, for any number of probabilities
_FEW = 200  # with fewer probabilities the test detects only large differences
_BINS, _WIDEST = 40, 10.0  # of the histogram of D p


@dataclass(frozen=True)
class Histogram:
    """Density of D p in the bins between `edges`, and the law's mean in each; the fraction `beyond` lies above them."""

    edges: tuple[float, ...]
    density: tuple[float, ...]
    expected_density: tuple[float, ...]
    beyond: float


@dataclass(frozen=True)
class PorterThomas(Measurement):
    """The D probabilities of S states compared with the law of random states over `field`.

    `distance` and `other_distance` are the Kolmogorov-Smirnov distances of all S D probabilities to the law of the
    field and to that of the other field. `p_value` is the probability that random states are as far from their law.
    `ipr` is the mean of D sum p^2 and `entropy` that of -sum p ln p, in nats; their `_error` is the standard deviation
    of the mean over S random states. `largest` is the largest D p.
    """

    field: str
    n_states: int
    n_outcomes: int
    distance: float
    other_distance: float
    p_value: float
    n_tested: int
    ipr: float
    expected_ipr: float
    ipr_error: float
    entropy: float
    expected_entropy: float
    entropy_error: float
    largest: float
    histogram: Histogram = of_dataclass(repr=False)

    @property
    def is_random(self) -> bool:
        """Whether the test detects no difference from random states: p >= 0.05."""
        return self.p_value >= _HINT

    @property
    def sentence(self) -> str:
        law = f"random {self.field} states"
        found = f"distance {self.distance:.3f}, {self._chance}"
        if self.is_random and self.n_tested < _FEW:
            limit = f"{self.n_tested} probabilities show only large ones"
            return f"No difference from {law} is found, but {limit} ({found})."
        if self.is_random:
            return f"The probabilities are indistinguishable from those of {law} ({found}): they are a random vector."
        if self.p_value >= _SHOWN:
            return f"There is only weak evidence of a difference from {law} ({found})."
        uneven = "more uneven" if self.ipr > self.expected_ipr else "more even"
        measured = f"{found}; {uneven}, IPR {self.ipr:.3g} where {self.expected_ipr:.3g} is expected"
        if self.distance < min(_CLOSE, self.other_distance):
            return f"The probabilities are close to those of {law} but measurably different ({measured})."
        return f"The probabilities differ from those of {law} ({measured})."

    @property
    def _chance(self) -> str:
        least = 1 / (_RESAMPLES + 1)
        return f"p = {self.p_value:.2g}" if self.p_value > least else f"p ≤ {least:g}"


def porter_thomas(probabilities: Tensor | Floats, field: str = "real") -> PorterThomas:
    """Compare the probabilities of states with those of random states.

    One of the D probabilities p of a random state follows Beta(1/2, (D-1)/2) for real and Beta(1, D-1) for complex
    amplitudes; D p then tends to the chi-square law with one degree of freedom, or to the exponential law. The D
    probabilities of one state sum to 1, so they are not independent, and the usual p-value of a Kolmogorov-Smirnov
    test would be wrong. Here the same distance is computed for 199 simulated sets of random states of the same number
    and size; the p-value is the rank of the measured distance among them, (1 + number of distances as large) / 200. At
    most 32,768 probabilities are tested: equally many of each state, chosen at random and simulated in the same way.

    Args:
        probabilities: (S, D) of S states, or (D,) of one state; each state's probabilities sum to 1. Frequencies over
            shots are not probabilities: they follow the distribution of counts.
        field: "real" for circuits of RY, CNOT and CZ, such as QPA's and Quantum-PEFT's; "complex" for all others.

    Raises:
        ConfigError: An unknown field, another shape, or values that are not probabilities.
    """
    p = _rows(probabilities)
    law = HaarLaw(field, p.shape[1])
    entropies = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    p_value, n_tested = _test(p, law)
    root = math.sqrt(len(p))
    return PorterThomas(
        field=field,
        n_states=len(p),
        n_outcomes=law.size,
        distance=_distance(p, law),
        other_distance=_distance(p, law.other),
        p_value=p_value,
        n_tested=n_tested,
        ipr=float(law.size * (p**2).sum(axis=1).mean()),
        expected_ipr=law.ipr,
        ipr_error=law.ipr_spread / root,
        entropy=float(entropies.mean()),
        expected_entropy=law.entropy,
        entropy_error=law.entropy_spread / root,
        largest=float(law.size * p.max()),
        histogram=_histogram(p, law),
    )


def _rows(probabilities: Tensor | Floats) -> Floats:
    given = probabilities.detach().cpu().numpy() if isinstance(probabilities, Tensor) else np.asarray(probabilities)
    if given.ndim not in (1, 2) or 0 in given.shape or np.iscomplexobj(given):
        raise ConfigError(f"probabilities must be real, of shape (states, D) or (D,), got {given.dtype}{given.shape}")
    p = np.atleast_2d(given).astype(np.float64)
    if not np.isfinite(p).all() or p.min() < 0 or abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ConfigError("these are not probabilities: each must be 0 or more, and those of each state must sum to 1")
    return p


@lru_cache(maxsize=8)
def _quantiles(law: HaarLaw) -> Floats:
    return law.quantiles(np.arange(1, _GRID) / _GRID)


def _distance(p: Floats, law: HaarLaw) -> float:
    shares = np.searchsorted(np.sort(p, axis=None), _quantiles(law), side="right") / p.size
    return float(abs(shares - np.arange(1, _GRID) / _GRID).max())


def _test(p: Floats, law: HaarLaw) -> tuple[float, int]:
    """The p-value, and the number of probabilities tested."""
    random = generator(zlib.crc32(p.tobytes()))  # deterministic for the same data
    n_states = min(len(p), _TESTED)
    entries = min(law.size, _TESTED // n_states)
    tested = p
    if n_states < len(p):
        tested = random.choice(p, n_states, replace=False)
    if entries < law.size:
        tested = random.permuted(tested, axis=1)[:, :entries]
    found = _distance(tested, law)
    simulated = [_distance(law.draw(n_states, entries, random), law) for _ in range(_RESAMPLES)]
    return (1 + sum(distance >= found for distance in simulated)) / (_RESAMPLES + 1), tested.size


def _histogram(p: Floats, law: HaarLaw) -> Histogram:
    edges = np.linspace(0, min(_WIDEST, law.size), _BINS + 1)
    shares = np.histogram(law.size * p, edges)[0] / p.size
    width = edges[1]
    return Histogram(
        edges=floats(edges),
        density=floats(shares / width),
        expected_density=floats(np.diff(law.cdf(edges / law.size)) / width),
        beyond=float(max(0.0, 1 - shares.sum())),
    )
