"""Haar-random states: uniform on the sphere of real, or of complex, unit vectors.

The D probabilities of such a state follow the Dirichlet law with all parameters a, a = 1/2 for real and a = 1 for
complex states. One probability, and also the fidelity |<x|y>|^2 of two states, follows

    Beta(a, a (D - 1)).

The circuits of QPA and Quantum-PEFT rotate by RY only, so their states are real and follow the law "real".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, polygamma, psi
from torch import Tensor

from qpeft.diagnostics.states import check_positive, generator
from qpeft.errors import ConfigError

Floats = NDArray[np.float64]
_PARAMETER = {"real": 0.5, "complex": 1.0}


def haar_states(samples: int, n_qubits: int, field: str = "real", seed: int = 0) -> Tensor:
    """Haar-random states (samples, 2**N) of N = `n_qubits`, drawn from `seed`.

    Amplitudes are float64 for the field "real", complex128 for "complex".

    Raises ConfigError for another field and for sizes below 1.
    """
    check_positive(samples=samples, n_qubits=n_qubits)
    parts = 1 if HaarLaw(field, 2**n_qubits).field == "real" else 2
    drawn = generator(seed).standard_normal((samples, 2**n_qubits, parts))
    states = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=(1, 2), keepdims=True))
    return states.squeeze(-1) if parts == 1 else torch.view_as_complex(states)


@dataclass(frozen=True)
class HaarLaw:
    """The law of the D probabilities of a random state over the field "real" or "complex".

    Raises ConfigError for another field and for D < 2.
    """

    field: str
    size: int

    def __post_init__(self) -> None:
        if self.field not in _PARAMETER:
            raise ConfigError(f"unknown field '{self.field}'; choose one of {', '.join(_PARAMETER)}")
        if self.size < 2:
            raise ConfigError(f"a state needs at least 2 probabilities, got {self.size}")

    @property
    def a(self) -> float:
        """The Dirichlet law's parameter."""
        return _PARAMETER[self.field]

    @property
    def other(self) -> HaarLaw:
        """The other field's law."""
        return HaarLaw("complex" if self.field == "real" else "real", self.size)

    def cdf(self, p: Floats) -> Floats:
        """Cumulative distribution of one probability, or of a fidelity, at p."""
        return betainc(self.a, self.a * (self.size - 1), p)

    def quantiles(self, shares: Floats) -> Floats:
        """The inverse of `cdf`."""
        return betaincinv(self.a, self.a * (self.size - 1), shares)

    @property
    def ipr(self) -> float:
        """E[D^2 p^2]: 3D/(D+2) for real, 2D/(D+1) for complex states."""
        return self.size * (self.a + 1) / (self.a * self.size + 1)

    @property
    def ipr_spread(self) -> float:
        """Standard deviation of one state's D sum p^2."""
        a, d = self.a, self.size
        rising = np.prod(a * d + np.arange(4.0))
        fourth = d * np.prod(a + np.arange(4.0)) / rising
        pairs = d * (d - 1) * (a * (a + 1)) ** 2 / rising
        return float(np.sqrt(max(0.0, d**2 * (fourth + pairs) - self.ipr**2)))

    @property
    def entropy(self) -> float:
        """E[-sum p ln p] in nats: psi(D/2 + 1) - psi(3/2) for real, psi(D + 1) - psi(2) for complex states."""
        return float(psi(self.a * self.size + 1) - psi(self.a + 1))

    @property
    def entropy_spread(self) -> float:
        """Standard deviation of one state's entropy, in nats (Wolpert and Wolf's second moment)."""
        a, d, total = self.a, self.size, self.a * self.size
        pairs = (psi(a + 1) - psi(total + 2)) ** 2 - polygamma(1, total + 2)
        own = (psi(a + 2) - psi(total + 2)) ** 2 + polygamma(1, a + 2) - polygamma(1, total + 2)
        second = (d * (d - 1) * a**2 * pairs + d * a * (a + 1) * own) / (total * (total + 1))
        return float(np.sqrt(max(0.0, second - self.entropy**2)))

    @property
    def entanglement(self) -> float:
        """E of Meyer and Wallach's Q: (D-2)/(D+2) for real, (D-2)/(D+1) for complex states."""
        return (self.size - 2) / (self.size + 1 / self.a)

    def draw(self, samples: int, entries: int, random: np.random.Generator) -> Floats:
        """`entries` of the D probabilities of each of `samples` random states: (samples, entries)."""
        shape = (samples, entries)
        weights = random.standard_normal(shape) ** 2 / 2 if self.field == "real" else random.standard_exponential(shape)
        rest = random.standard_gamma(self.a * (self.size - entries), (samples, 1)) if entries < self.size else 0.0
        return weights / (weights.sum(axis=1, keepdims=True) + rest)
