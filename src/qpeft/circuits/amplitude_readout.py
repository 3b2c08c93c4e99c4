"""What is read of QAA's final states, and the gradient that goes back into the states.

A readout maps states psi (2**N, T) to features q (F, T), each a quadratic form of psi, and knows its transpose: from
the gradient g (F, T) and a number per token, `shift`, it gives (dq/dpsi)^T g - 2 shift psi.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qpeft.circuits.amplitude_tables import Pair


class Readout(Protocol):
    def read(self, psi: Tensor) -> Tensor: ...  # (2**N, T) -> (F, T)

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor) -> Tensor: ...  # (F, T), (T,), (2**N, T) -> (2**N, T)


class Expectations(NamedTuple):
    """Sums of probabilities with signs: F = N features."""

    signs: Tensor  # (2**N, N)

    def read(self, psi: Tensor) -> Tensor:
        return self.signs.mT @ _squares(psi)

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor) -> Tensor:
        return psi * torch.addmm(shift, self.signs, g, beta=-2, alpha=2)


class Probabilities(NamedTuple):
    """All probabilities, behind a permutation that was not applied to the state: F = 2**N features."""

    source: Tensor  # (2**N,) int64
    target: Tensor  # (2**N,) int64, its inverse

    def read(self, psi: Tensor) -> Tensor:
        return _squares(psi)[self.source]

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor) -> Tensor:
        return psi * (2 * (g[self.target] - shift))


class Pairs(NamedTuple):
    """For real states: the N `Expectations`, then for every pair half the sum of psi_j psi_j' over all its (j, j')."""

    signs: Tensor  # (2**N, N)
    pairs: tuple[Pair, ...]

    def read(self, psi: Tensor) -> Tensor:
        products = []
        for pair in self.pairs:
            view = psi.view(pair.shape)
            products.append((view[pair.here] * view[pair.there]).flatten(0, -2).sum(0))
        return torch.cat([Expectations(self.signs).read(psi), torch.stack(products)])

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor) -> Tensor:
        n_qubits = self.signs.shape[1]
        lam = Expectations(self.signs).pull(g[:n_qubits], shift, psi)
        for pair, slope in zip(self.pairs, g[n_qubits:], strict=True):
            view, into = psi.view(pair.shape), lam.view(pair.shape)
            into[pair.here].addcmul_(view[pair.there], slope)
            into[pair.there].addcmul_(view[pair.here], slope)
        return lam


def _squares(psi: Tensor) -> Tensor:
    return psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()
