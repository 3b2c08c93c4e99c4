"""Orthonormal columns of any width from few angles, and how many of the angles act."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.ansatz import count_angles, two_design_pairs
from qpeft.circuits.columns import basis_columns
from qpeft.circuits.cosine_sine import (
    Signs,
    cosine_sine_columns,
    count_acting_parts,
    frame_dimension,
    leading_block,
    part_sizes,
)
from qpeft.circuits.finite import has_nonfinite
from qpeft.circuits.pad import pad_columns
from qpeft.circuits.precision import full_precision
from qpeft.circuits.two_design import two_design_columns
from qpeft.errors import ConfigError, UnsupportedTypeError

CONSTRUCTIONS = ("auto", "qsd", "qsd_full", "pad")


def orthogonal_columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    construction: str = "auto",
    signs: Signs | None = None,
) -> Tensor:
    """K orthonormal columns of `width` rows, for every value of the angles.

    `angles` (P,) or (M, P), float32 or float64, P = `count_orthogonal(width, n_layers, construction)`; `columns` are
    K basis indices on `column_qubits(width, construction)` wires. Gives (N, K) or (M, N, K) in the angles' dtype and
    on their device. A power of two is one circuit. Other widths: `qsd` is the cosine-sine recursion, `qsd_full` the
    same with angles that never act, `pad` a larger circuit cut to size, `auto` is `qsd` for two or three set bits of
    the width and `pad` for more.

    `signs`: n_qubits -> (2L, 2**n_qubits) of +-1, what stands for the CZ gates in every circuit.

    Raises ConfigError and UnsupportedTypeError for unusable arguments, CircuitError if `pad` finds nearly
    dependent columns.
    """
    _check_angles(angles, width, n_layers, construction)
    check_rank(len(columns), width, construction)
    batch = angles if angles.ndim == 2 else angles[None]
    result = _columns(batch, width, n_layers, columns, resolve_construction(width, construction), signs)
    return result if angles.ndim == 2 else result[0]


def resolve_construction(width: int, construction: str) -> str:
    """What `construction` means at `width`: "circuit" (a power of two), "qsd", "qsd_full" or "pad".

    Raises ConfigError for an unknown name and a width below 1.
    """
    if construction not in CONSTRUCTIONS:
        raise ConfigError(f"unknown construction '{construction}'; choose one of {', '.join(CONSTRUCTIONS)}")
    if width < 1:
        raise ConfigError(f"width must be at least 1, got {width}")
    if width.bit_count() == 1:
        return "circuit"
    if construction == "auto":
        return "qsd" if width.bit_count() <= 3 else "pad"
    return construction


def column_qubits(width: int, construction: str = "auto") -> int:
    """Wires on which the columns are chosen: ceil(log2 N) for `pad`, otherwise those of the leading block."""
    padded = resolve_construction(width, construction) == "pad"
    return (width - 1).bit_length() if padded else width.bit_length() - 1


def count_orthogonal(width: int, n_layers: int, construction: str = "auto") -> int:
    """Number of angles, for example 127 for (768, 2)."""
    name = resolve_construction(width, construction)
    if name.startswith("qsd"):
        return sum(part_sizes(width, n_layers, with_v2=name == "qsd_full"))
    return count_angles("two_design", column_qubits(width, construction), n_layers)


def count_acting(width: int, n_layers: int, construction: str, columns_kind: str, k: int) -> int:
    """How many of the angles can move the k columns: the rank of their Jacobian at almost every point.

    Idle are the angles of the top V2 of `qsd_full` (it multiplies zeros) and, in the first circuit, one angle of
    every step-a pair whose two wires are the same in all columns. No part can do more than turn the columns in its
    own rows. The true rank is up to three lower in corners: where that last limit is nearly reached, and for `pad`
    at one row more than a power of two.

    Raises ConfigError for unknown names and for k outside what the width and the construction hold.
    """
    check_rank(k, width, construction)
    name = resolve_construction(width, construction)
    constant = _constant_pairs(columns_kind, column_qubits(width, construction), k)
    if not name.startswith("qsd"):
        return min(count_orthogonal(width, n_layers, construction) - constant, frame_dimension(width, k))
    return count_acting_parts(width, n_layers, k, constant)


def check_rank(k: int, width: int, construction: str) -> None:
    """Raise ConfigError if the width or its leading block cannot hold k columns."""
    name = resolve_construction(width, construction)
    if name.startswith("qsd") and k > leading_block(width):
        raise ConfigError(
            f"r={k} exceeds the leading block {leading_block(width)} of width {width}; use construction='pad'"
        )
    if k > width:
        raise ConfigError(f"{width} rows hold at most {width} orthonormal columns, got {k}")


def _constant_pairs(columns_kind: str, n_qubits: int, k: int) -> int:
    numbers = basis_columns(columns_kind, n_qubits, k)
    varying = [bool((numbers >> (n_qubits - 1 - wire) & 1).unique().numel() > 1) for wire in range(n_qubits)]
    return sum(not (varying[first] or varying[second]) for first, second in two_design_pairs(n_qubits, 0))


@full_precision
def _columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    name: str,
    signs: Signs | None,
) -> Tensor:
    if name.startswith("qsd"):
        return cosine_sine_columns(angles, width, n_layers, columns, signs, with_v2=name == "qsd_full")
    n_qubits = (width - 1).bit_length()
    diagonals = None if signs is None else signs(n_qubits)
    if name == "pad":
        return pad_columns(angles, width, n_layers, columns, diagonals)
    return two_design_columns(angles, n_qubits, n_layers, columns, diagonals)


def _check_angles(angles: Tensor, width: int, n_layers: int, construction: str) -> None:
    if angles.dtype not in (torch.float32, torch.float64):
        raise UnsupportedTypeError(f"angles must be float32 or float64, got {angles.dtype}")
    expected = count_orthogonal(width, n_layers, construction)
    if angles.ndim not in (1, 2) or angles.shape[-1] != expected:
        raise ConfigError(
            f"width {width} and {n_layers} layers need angles of shape ({expected},) or (M, {expected}), "
            f"got {tuple(angles.shape)}"
        )
    if has_nonfinite(angles):
        raise ConfigError("circuit angles contain NaN or Inf")
