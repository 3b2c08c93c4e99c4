"""The basis states from which a circuit starts to produce the K columns of an orthonormal matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.numerics import check_elements
from qpeft.errors import ConfigError

_MOST_QUBITS = 62  # indices are int64
COLUMN_KINDS = ("first", "spread")


def basis_columns(kind: str, n_qubits: int, k: int) -> Tensor:
    """Distinct basis indices (k,) int64 on the CPU.

    `first` is 0, ..., k-1. `spread` repeats the b = max(2, ceil(log2 k)) low bits of each column's number over
    all wires, from the least significant on, so that every wire takes both of its states:

        index(j) = sum_i bit(j, i mod b) * 2**i

    Raises ConfigError for an unknown kind, for more than 62 qubits, and for k outside 1 .. 2**n_qubits.
    """
    if kind not in COLUMN_KINDS:
        raise ConfigError(f"unknown columns '{kind}'; choose one of {', '.join(COLUMN_KINDS)}")
    if n_qubits > _MOST_QUBITS:
        raise ConfigError(f"indices of basis states are computed for at most {_MOST_QUBITS} qubits, got {n_qubits}")
    check_elements(k, f"{k} columns", "use fewer")
    if not 1 <= k <= 2**n_qubits:
        raise ConfigError(
            f"a circuit on {n_qubits} qubits has {2**n_qubits} columns; choose 1 to {2**n_qubits} of them, got {k}"
        )
    number = torch.arange(k, device="cpu")
    if kind == "first":
        return number
    repeated = max(2, (k - 1).bit_length())
    index = torch.zeros_like(number)
    for wire in range(n_qubits):
        index |= ((number >> wire % repeated) & 1) << wire
    return index
