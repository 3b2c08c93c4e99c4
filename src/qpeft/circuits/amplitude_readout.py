"""The measurements of QAA's final states, and their gradients with respect to the states.

A readout maps real states psi (2**N, T) to features q (F, T), each a quadratic form of psi, and implements the
transpose: from the gradient g (F, T) and one value per token, `shift` (T,), it computes (dq/dpsi)^T g - 2 shift psi.
The real and the imaginary part of a complex state are two real states; their features are summed.

The last ring of CNOTs is part of the readout. It maps basis index j to R j, linear over bits. Behind it, Z of wire r
reads bit r of R j, the parity of some bits of j, and X of wire r flips the bits R^-1 e_r, with e_r the bit of wire r.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qpeft.circuits.ansatz import ring_pairs
from qpeft.circuits.numerics import cached_tables


class Ring(NamedTuple):
    """The ring as a gather of amplitudes (2**N, ...): `new = old[source]`, `old = new[target]`."""

    source: Tensor  # (2**N,) int64
    target: Tensor  # (2**N,) int64


class Flip(NamedTuple):
    """The k bits that X of a wire flips behind the ring.

    Split at these bits, a state (2**N, T) is 2**k corners, one for each of their patterns in ascending order; a flip
    exchanges the first with the last, the second with the last but one, and so on.
    """

    shape: tuple[int, ...]  # of 2**N amplitudes, every second axis a run of flipped bits
    signs: tuple[tuple[int, ...], ...]  # (2**(k-1), N): of the first half of the corners, +-1; 0 for other bits

    def corners(self, psi: Tensor) -> list[Tensor]:
        """Views of psi (2**N, T), tokens in the last axis."""
        views = [psi.view(*self.shape, psi.shape[1])]
        for axis in range(1, 1 + len(self.shape) // 2):  # earlier split axes no longer exist
            views = [part for view in views for part in view.unbind(axis)]
        return views


@cached_tables()
def ring_tables(n_qubits: int, device: torch.device) -> Ring:
    target = torch.tensor(_ring(n_qubits))
    return Ring(target.argsort().to(device), target.to(device))


@cached_tables()
def sign_table(n_qubits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, 2**N) of +-1: Z of every wire behind the ring, on R j for basis index j."""
    bits = torch.tensor(_ring(n_qubits)) >> torch.arange(n_qubits - 1, -1, -1)[:, None] & 1
    return (1 - 2 * bits).to(device, dtype)


@lru_cache(maxsize=64)
def flip_table(n_qubits: int) -> tuple[Flip, ...]:
    """The flip of X of every wire behind the ring."""
    ring = _ring(n_qubits)
    flipped = [ring.index(1 << (n_qubits - 1 - wire)) for wire in range(n_qubits)]
    return tuple(_flip([bits >> (n_qubits - 1 - wire) & 1 == 1 for wire in range(n_qubits)]) for bits in flipped)


@cached_tables()
def flip_signs(n_qubits: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The signs (F, N) of all wires' flips, and the wire of each flip, one-hot (F, N)."""
    flips = flip_table(n_qubits)
    owners = [[wire == owner for wire in range(n_qubits)] for owner, flip in enumerate(flips) for _ in flip.signs]
    signs = torch.tensor([row for flip in flips for row in flip.signs])
    return signs.to(device, dtype), torch.tensor(owners).to(device, dtype)


def _flip(flipped: list[bool]) -> Flip:
    shape, previous = [1], False
    for one in flipped:
        if one == previous:
            shape[-1] *= 2
        else:
            shape.append(2)
        previous = one
    if previous:
        shape.append(1)
    wires = [wire for wire, one in enumerate(flipped) if one]
    signs = []
    for pattern in range(2 ** (len(wires) - 1)):
        row = [0] * len(flipped)
        for place, wire in enumerate(reversed(wires)):
            row[wire] = 1 - 2 * (pattern >> place & 1)
        signs.append(tuple(row))
    return Flip(tuple(shape), tuple(signs))


def _ring(n_qubits: int) -> list[int]:
    """R j for every basis index j."""
    index = list(range(2**n_qubits))
    for control, target in ring_pairs(n_qubits):
        on, flip = n_qubits - 1 - control, 1 << (n_qubits - 1 - target)
        index = [j ^ flip if j >> on & 1 else j for j in index]
    return index


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
    """All probabilities, F = 2**N, behind a ring that was not applied to the state; without a ring for None."""

    ring: Ring | None

    def read(self, psi: Tensor) -> Tensor:
        p = psi.square()
        return p if self.ring is None else p[self.ring.source]

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        g = g if self.ring is None else g[self.ring.target]
        return torch.mul(psi, 2 * (g - shift), out=out)


class Flips(NamedTuple):
    """`Expectations`, then the scalar product of every pair of corners of every flip."""

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
