"""Orthonormal columns of any width from circuits by the cosine-sine (quantum Shannon) recursion.

With N1 = 2^floor(log2 N) and N2 = N - N1

    U = (U1 (+) U2) CS(phi) (V1 (+) V2)

U1 and V1 are circuits, U2 and V2 are made the same way on N2. CS turns row j of the top block against row j of the
bottom block by phi_j / 2, j < N2, with phi_j = c_0 + sum_b bit(j, b) c_{1+b}. The columns start in the top block, so
at the top level V2 multiplies zeros: `qsd` leaves it out, `qsd_full` carries its angles along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from qpeft.circuits.ansatz import count_angles
from qpeft.circuits.two_design import two_design_columns
from qpeft.circuits.two_design_apply import two_design_apply

Signs = Callable[[int], Tensor]


def leading_block(width: int) -> int:
    """N1, the largest power of two that is at most `width`."""
    return 1 << (width.bit_length() - 1)


def part_sizes(width: int, n_layers: int, with_v2: bool = True) -> list[int]:
    """Parameters of V1, V2, c, U1 and U2, the order in which they lie; V2 has none where it is left out."""
    n1 = leading_block(width)
    n2 = width - n1
    block = count_angles("two_design", n1.bit_length() - 1, n_layers)
    rest = _count_full(n2, n_layers)
    return [block, rest if with_v2 else 0, 1 + (n2 - 1).bit_length(), block, rest]


def cosine_sine_columns(
    angles: Tensor, width: int, n_layers: int, columns: Sequence[int] | Tensor, signs: Signs | None, with_v2: bool
) -> Tensor:
    """(M, P) -> (M, N, K) for a width that is no power of two; `columns` are basis states of V1."""
    n1 = leading_block(width)
    n2, n_qubits = width - n1, n1.bit_length() - 1
    v1, _, c, u1, u2 = angles.split(part_sizes(width, n_layers, with_v2), dim=1)
    block = two_design_columns(v1, n_qubits, n_layers, columns, signs and signs(n_qubits))  # (M, N1, K)
    cos, sin = _cosine_sine(c, n2)
    head, tail = block.mT.split([n2, n1 - n2], dim=2)  # as rows, the order in which circuits keep and take them
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


@lru_cache(maxsize=64)
def _bits(n2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row 0 is one, row 1 + b is bit b of the column's number: (1 + ceil(log2 N2), N2)."""
    with torch.device("cpu"):  # kept for good: no default device of the caller may leak into it
        place = torch.arange((n2 - 1).bit_length())[:, None]
        bits = (torch.arange(n2) >> place) & 1
        return torch.cat([torch.ones(1, n2), bits]).to(device, dtype)


def _count_full(width: int, n_layers: int) -> int:
    n1 = leading_block(width)
    if n1 == width:
        return count_angles("two_design", width.bit_length() - 1, n_layers)
    return sum(part_sizes(width, n_layers))


def frame_dimension(width: int, k: int) -> int:
    """Dimension of the set of k orthonormal columns of `width` rows; of all orthogonal matrices for more columns."""
    k = min(k, width)
    return width * k - k * (k + 1) // 2


def count_acting_parts(width: int, n_layers: int, k: int, constant: int) -> int:
    """How many angles act on k columns; `constant` of V1's do not."""
    n1 = leading_block(width)
    v1, _, c, u1, _ = part_sizes(width, n_layers)
    most = frame_dimension(n1, k)
    total = min(v1 - constant, most) + c + min(u1, most) + _acting_full(width - n1, n_layers, k)
    return min(total, frame_dimension(width, k))


def _acting_full(width: int, n_layers: int, k: int) -> int:
    n1 = leading_block(width)
    if n1 == width:
        return min(_count_full(width, n_layers), frame_dimension(width, k))
    c = part_sizes(width, n_layers)[2]
    total = c + 2 * (_acting_full(n1, n_layers, k) + _acting_full(width - n1, n_layers, k))
    return min(total, frame_dimension(width, k))
