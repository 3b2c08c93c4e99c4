"""Constants of QAA's circuits: the ring of CNOTs as a permutation, and what it does to Z and X behind it.

The ring maps basis index j to R j, linear over bits. Behind it, Z of wire r reads bit r of R j, the parity of some bits
of j, and X of wire r flips the bits of R^-1 e_r, with e_r the bit of wire r.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import ring_pairs


class Ring(NamedTuple):
    """The ring as a gather of amplitudes (2**N, ...): `new = old[source]`, `old = new[target]`."""

    source: Tensor  # (2**N,) int64
    target: Tensor  # (2**N,) int64


class Pair(NamedTuple):
    """Half of the pairs (j, j with some bits flipped): those with a given pattern of these bits, and their partners."""

    wire: int  # r, whose X behind the ring flips the bits
    shape: tuple[int, ...]  # in which a state shows an axis of 2 for each flipped bit; tokens come last
    here: tuple[int | slice, ...]
    there: tuple[int | slice, ...]
    signs: tuple[int, ...]  # (N,): +1, -1 for a flipped bit that is 0, 1 in j; else 0


@lru_cache(maxsize=64)
def ring_tables(n_qubits: int, device: torch.device) -> Ring:
    target = torch.tensor(_ring(n_qubits), device=device)
    return Ring(target.argsort(), target)


@lru_cache(maxsize=64)
def sign_table(n_qubits: int, behind_ring: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2**N, N) of +-1: Z of every wire on basis index j, or on R j."""
    index = torch.tensor(_ring(n_qubits) if behind_ring else range(2**n_qubits))
    bits = index[:, None] >> torch.arange(n_qubits - 1, -1, -1) & 1
    return (1 - 2 * bits).to(device, dtype)


@lru_cache(maxsize=64)
def pair_table(n_qubits: int) -> tuple[Pair, ...]:
    """The pairs that X of every wire behind the ring joins, by the pattern of the flipped bits up to a flip of all."""
    ring = _ring(n_qubits)
    pairs = []
    for wire in range(n_qubits):
        flipped = ring.index(1 << (n_qubits - 1 - wire))
        wires = [other for other in range(n_qubits) if flipped >> (n_qubits - 1 - other) & 1]
        pairs += [_pair(wire, wires, (0, *rest), n_qubits) for rest in product((0, 1), repeat=len(wires) - 1)]
    return tuple(pairs)


@lru_cache(maxsize=64)
def pair_signs(n_qubits: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all pairs of `pair_table` the signs (F, N), and which wire each belongs to, one-hot (F, N)."""
    pairs = pair_table(n_qubits)
    signs = torch.tensor([pair.signs for pair in pairs]).to(device, dtype)
    owner = torch.tensor([[wire == pair.wire for wire in range(n_qubits)] for pair in pairs]).to(device, dtype)
    return signs, owner


def _pair(wire: int, wires: list[int], bits: tuple[int, ...], n_qubits: int) -> Pair:
    shape, here, there, done = [], [], [], 0
    signs = [0] * n_qubits
    for other, bit in zip(wires, bits, strict=True):
        shape += [2 ** (other - done), 2]
        here += [slice(None), bit]
        there += [slice(None), 1 - bit]
        signs[other] = 1 - 2 * bit
        done = other + 1
    return Pair(wire, (*shape, 2 ** (n_qubits - done), -1), tuple(here), tuple(there), tuple(signs))


def _ring(n_qubits: int) -> list[int]:
    """R j for every basis index j."""
    index = list(range(2**n_qubits))
    for control, target in ring_pairs(n_qubits):
        on, flip = n_qubits - 1 - control, 1 << (n_qubits - 1 - target)
        index = [j ^ flip if j >> on & 1 else j for j in index]
    return index
