"""Orthonormal columns of any width from circuits by the cosine-sine (quantum Shannon) recursion.

With N1 = 2^floor(log2 N) and N2 = N - N1

    U = (U1 (+) U2) CS(phi) (V1 (+) V2)

U1 and V1 are circuits; U2 and V2 are built by the same recursion on N2. CS rotates row j of the top block against row
j of the bottom block by phi_j / 2, j < N2, with phi_j = c_0 + sum_b bit(j, b) c_{1+b}. The columns start in the top
block, so V2 multiplies zeros at the top level: `qsd` omits it, `qsd_full` keeps its angles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qpeft.circuits.counting import leading_block, part_sizes
from qpeft.circuits.numerics import cached_tables
from qpeft.circuits.two_design import two_design_columns
from qpeft.circuits.two_design_apply import two_design_apply

Signs = Callable[[int], Tensor]


def cosine_sine_columns(
    angles: Tensor, width: int, n_layers: int, columns: Sequence[int] | Tensor, signs: Signs | None, with_v2: bool
) -> Tensor:
    """(M, P) -> (M, N, K) for a width that is no power of two; `columns` are basis states of V1."""
    n1 = leading_block(width)
    n2, n_qubits = width - n1, n1.bit_length() - 1
    v1, _, c, u1, u2 = angles.split(part_sizes(width, n_layers, with_v2), dim=1)
    block = two_design_columns(v1, n_qubits, n_layers, columns, signs and signs(n_qubits))  # (M, N1, K)
    cos, sin = _cosine_sine(c, n2)
    head, tail = block.mT.split([n2, n1 - n2], dim=2)  # as rows, the memory layout of the circuits
    top = torch.cat([cos * head, tail], dim=2).mT
    return torch.cat([_apply(u1, n1, n_layers, top, signs), _apply(u2, n2, n_layers, (sin * head).mT, signs)], dim=1)


def _apply(angles: Tensor, width: int, n_layers: int, x: Tensor, signs: Signs | None) -> Tensor:
    """The whole recursion U(angles) x for x (M, N, K)."""
    n1 = leading_block(width)
    if n1 == width:
        n_qubits = width.bit_length() - 1
        return two_design_apply(angles, n_qubits, n_layers, x, signs and signs(n_qubits))
    n2 = width - n1
    v1, v2, c, u1, u2 = angles.split(part_sizes(width, n_layers), dim=1)
    top, bottom = _apply(v1, n1, n_layers, x[:, :n1], signs), _apply(v2, n2, n_layers, x[:, n1:], signs)
    cos, sin = _cosine_sine(c, n2)
    head, tail = top.mT.split([n2, n1 - n2], dim=2)
    turned = torch.cat([cos * head - sin * bottom.mT, tail], dim=2).mT
    bottom = (sin * head + cos * bottom.mT).mT
    return torch.cat([_apply(u1, n1, n_layers, turned, signs), _apply(u2, n2, n_layers, bottom, signs)], dim=1)


def _cosine_sine(c: Tensor, n2: int) -> tuple[Tensor, Tensor]:
    """cos(phi / 2) and sin(phi / 2), both (M, 1, N2), from c (M, 1 + ceil(log2 N2))."""
    half = (c / 2) @ _bits(n2, c.dtype, c.device)
    return half.cos()[:, None], half.sin()[:, None]


@cached_tables()
def _bits(n2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row 0 is one, row 1 + b is bit b of the column's number: (1 + ceil(log2 N2), N2)."""
    place = torch.arange((n2 - 1).bit_length())[:, None]
    bits = (torch.arange(n2) >> place) & 1
    return torch.cat([torch.ones(1, n2), bits]).to(device, dtype)
