"""The number of QPA's trainable parameters, and the largest chunk size within a budget.

For m adapter parameters and chunk size n there are C = ceil(m / n) chunks, one basis state each, so
N = max(1, ceil(log2 C)) qubits. Trainable parameters:

    L * N                        angles (or C values of a free vector, or none if nothing is trained)
    sum (in + 1) * out           MLP layers  N + 1 -> hidden -> n  (N -> ... without a feature)

The total is not monotone in n: N decreases by one where C reaches a power of two, so the largest chunk size is computed
for each number of qubits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.errors import ConfigError, setting

PAPER_HIDDEN = (32, 64, 128, 128, 64, 32, 32)
_SHRINK = (1, 2, 4, 8)


@dataclass(frozen=True)
class QPACount:
    """Counts of a QPA generator for m parameters."""

    m: int
    chunk_size: int
    n_chunks: int
    n_qubits: int
    hidden: tuple[int, ...]
    angles: int  # circuit angles that are trained
    feature: int  # parameters of a trained free vector
    mlp: int

    @property
    def total(self) -> int:
        """All trainable parameters."""
        return self.angles + self.feature + self.mlp


def n_chunks(m: int, chunk_size: int) -> int:
    return -(-m // chunk_size)


def n_qubits(chunks: int) -> int:
    """Qubits with a basis state for each chunk: max(1, ceil(log2 chunks))."""
    return max(1, (chunks - 1).bit_length())


def mlp_size(widths: Sequence[int]) -> int:
    """Weights and biases of linear layers between consecutive widths."""
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def count(m: int, chunk_size: int, n_layers: int, hidden: Sequence[int], feature_source: str) -> QPACount:
    """The counts for m adapter parameters in chunks of `chunk_size`."""
    chunks = n_chunks(m, chunk_size)
    qubits = n_qubits(chunks)
    inputs = qubits + (feature_source != "none")
    return QPACount(
        m=m,
        chunk_size=chunk_size,
        n_chunks=chunks,
        n_qubits=qubits,
        hidden=tuple(hidden),
        angles=n_layers * qubits if feature_source == "qnn" else 0,
        feature=chunks if feature_source == "free" else 0,
        mlp=mlp_size((inputs, *hidden, chunk_size)),
    )


def fit(
    m: int, budget: int, n_layers: int, hidden: Sequence[int] | None, max_qubits: int
) -> tuple[int, tuple[int, ...]]:
    """Largest chunk size, and the MLP widths, with at most `budget` trainable parameters for a trained circuit.

    The controls (`feature_source` other than "qnn") have the same chunk size, so that they differ only in the feature.

    Raises:
        ConfigError: no chunk size fits.
    """
    widths = hidden_for(budget) if hidden is None else tuple(hidden)
    max_qubits = min(max_qubits, m.bit_length())  # enough for m chunks of one parameter
    best = max(
        (size for q in range(1, max_qubits + 1) if (size := _largest_chunk(m, budget, q, n_layers, widths))),
        default=None,
    )
    if best is None:
        small = smallest(m, n_layers, widths, max_qubits)
        raise ConfigError(
            f"{setting('budget')} {budget} is too small: the smallest generator for {m} adapter parameters has "
            f"{small.total} trainable parameters (chunk_size={small.chunk_size}, {small.n_qubits} qubits); "
            f"reduce {setting('hidden')} or raise {setting('budget')}"
        )
    return best, widths


def hidden_for(budget: int) -> tuple[int, ...]:
    """The paper's widths, divided by 1, 2, 4 or 8 so that the inner layers have at most half of the budget."""
    choices = [tuple(width // divisor for width in PAPER_HIDDEN) for divisor in _SHRINK]
    return next((widths for widths in choices if _constant_part(widths) <= budget / 2), choices[-1])


def smallest(m: int, n_layers: int, hidden: Sequence[int], max_qubits: int) -> QPACount:
    """The generator with the fewest trainable parameters."""
    sizes = {max(1, n_chunks(m, 2**q)) for q in range(1, max_qubits + 1)}
    return min((count(m, size, n_layers, hidden, "qnn") for size in sizes), key=lambda c: c.total)


def _constant_part(hidden: Sequence[int]) -> int:
    """Parameters that depend neither on N nor on n: feature column, first biases, inner layers."""
    return 2 * hidden[0] + mlp_size(hidden)


def _largest_chunk(m: int, budget: int, qubits: int, n_layers: int, hidden: Sequence[int]) -> int | None:
    """Largest chunk size within the budget that needs exactly `qubits` qubits."""
    lowest = n_chunks(m, 2**qubits)
    highest = m if qubits == 1 else n_chunks(m, 2 ** (qubits - 1)) - 1
    fixed = _constant_part(hidden) + (n_layers + hidden[0]) * qubits
    size = min(math.floor((budget - fixed) / (hidden[-1] + 1)), highest, m)
    return size if size >= max(lowest, 1) else None
