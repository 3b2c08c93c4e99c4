"""What is read of QAA's final states, and the gradient that goes back into the states.

A readout maps real states psi (2**N, T) to features q (F, T), each a quadratic form of psi, and knows its transpose:
from the gradient g (F, T) and a number per token, `shift`, it gives (dq/dpsi)^T g - 2 shift psi. The real and the
imaginary part of a complex state are two real states; their features add up.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qpeft.circuits.amplitude_tables import Flip, Ring


class Readout(Protocol):
    def read(self, psi: Tensor) -> Tensor:
        """(2**N, T) -> (F, T)"""
        ...

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        """(F, T), (T,), (2**N, T) -> `out` (2**N, T)"""
        ...


class Expectations(NamedTuple):
    """Sums of all probabilities with signs."""

    signs: Tensor  # (F, 2**N)

    def read(self, psi: Tensor) -> Tensor:
        return self.signs @ psi.square()

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        return torch.addmm(shift, self.signs.mT, g, beta=-2, alpha=2, out=out).mul_(psi)


class Probabilities(NamedTuple):
    """All probabilities, behind a ring that was not applied to the state or, without one, as they are: F = 2**N."""

    ring: Ring | None

    def read(self, psi: Tensor) -> Tensor:
        p = psi.square()
        return p if self.ring is None else p[self.ring.source]

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        g = g if self.ring is None else g[self.ring.target]
        return torch.mul(psi, 2 * (g - shift), out=out)


class Flips(NamedTuple):
    """`Expectations`, then for every flip and pair of its corners their scalar product."""

    signs: Tensor  # (N, 2**N)
    flips: tuple[Flip, ...]

    def read(self, psi: Tensor) -> Tensor:
        products = []
        for flip in self.flips:
            corners = flip.corners(psi)
            for here, there in zip(corners[: len(flip.signs)], reversed(corners), strict=False):
                products.append((here * there).sum((0, *range(1, here.ndim - 1))))
        return torch.cat([Expectations(self.signs).read(psi), torch.stack(products)])

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        slopes = iter(g.unbind())
        lam = Expectations(self.signs).pull(torch.stack([next(slopes) for _ in self.signs]), shift, psi, out)
        for flip in self.flips:
            corners, into = flip.corners(psi), flip.corners(lam)
            for i in range(len(flip.signs)):
                slope = next(slopes)
                into[i].addcmul_(corners[-1 - i], slope)
                into[-1 - i].addcmul_(corners[i], slope)
        return lam
