"""The number of QPA's trainable parameters, and the largest chunk size within a budget.

G generators compute a share of ceil(m / G) parameters each. For a share m and chunk size n there are C = ceil(m / n)
chunks with K features each, one basis state for each feature, so the circuit has N + log2 K qubits with
N = max(1, ceil(log2 C)). Trainable parameters of each generator:

    angles of the circuit        L * (N + log2 K) for ry_ladder (or C * K free values, or none if nothing is trained)
    sum (in + 1) * out           layers  inputs -> hidden -> n, or K n of a linear map without hidden layers

The inputs are the K features, and the N bits of the chunk's index if there is a hidden layer; without features they are
the bits. The total is not monotone in n: N decreases by one where C reaches a power of two, so the largest chunk size
is computed for each number of qubits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, setting

PAPER_HIDDEN = (32, 64, 128, 128, 64, 32, 32)
_SHRINK = (1, 2, 4, 8)


@dataclass(frozen=True)
class QPACount:
    """Counts of a QPA generator for m parameters; with several generators, of all of them."""

    m: int
    chunk_size: int
    n_chunks: int
    n_qubits: int  # of each circuit
    hidden: tuple[int, ...]
    angles: int  # circuit angles that are trained
    feature: int  # parameters of trained free features
    mlp: int

    @property
    def total(self) -> int:
        """All trainable parameters."""
        return self.angles + self.feature + self.mlp


@dataclass(frozen=True)
class QPASize:
    """Everything that determines the counts, apart from chunk size and hidden widths."""

    m: int
    n_layers: int
    ansatz: str = "ry_ladder"
    features: int = 1  # K, a power of two
    feature_source: str = "qnn"
    n_generators: int = 1  # G

    @property
    def share(self) -> int:
        """Parameters of each generator."""
        return -(-self.m // self.n_generators)

    @property
    def feature_qubits(self) -> int:
        """log2 K"""
        return self.features.bit_length() - 1

    def inputs(self, bits: int, hidden: Sequence[int]) -> int:
        """Inputs of the first layer for chunk indices of `bits` bits."""
        if self.feature_source == "none":
            return bits
        return self.features + (bits if hidden else 0)

    def angles(self, bits: int) -> int:
        """Angles of one circuit."""
        return Ansatz(self.ansatz, bits + self.feature_qubits, self.n_layers).n_angles

    def count(self, chunk_size: int, hidden: Sequence[int]) -> QPACount:
        """The counts for chunks of `chunk_size`."""
        chunks = n_chunks(self.share, chunk_size)
        bits = index_bits(chunks)
        angles = self.angles(bits) if self.feature_source == "qnn" else 0
        feature = chunks * self.features if self.feature_source == "free" else 0
        return QPACount(
            m=self.m,
            chunk_size=chunk_size,
            n_chunks=self.n_generators * chunks,
            n_qubits=bits + self.feature_qubits,
            hidden=tuple(hidden),
            angles=self.n_generators * angles,
            feature=self.n_generators * feature,
            mlp=self.n_generators * mlp_size((self.inputs(bits, hidden), *hidden, chunk_size), has_bias=bool(hidden)),
        )

    def fit(self, budget: int, hidden: Sequence[int] | None, max_qubits: int) -> tuple[int, tuple[int, ...]]:
        """Largest chunk size, and the hidden widths, with at most `budget` trainable parameters for a trained circuit.

        The controls (`feature_source` other than "qnn") have the same chunk size, so that they differ only in the
        features.

        Raises:
            ConfigError: no chunk size fits.
        """
        trained = QPASize(self.m, self.n_layers, self.ansatz, self.features, "qnn", self.n_generators)
        widths = trained._hidden_for(budget) if hidden is None else tuple(hidden)
        all_bits = range(1, 1 + min(max_qubits - self.feature_qubits, self.share.bit_length()))
        sizes = (trained._largest_chunk(budget // self.n_generators, bits, widths) for bits in all_bits)
        best = max((size for size in sizes if size), default=None)
        if best is None:
            raise ConfigError(trained._too_small(budget, widths, all_bits))
        return best, widths

    def _hidden_for(self, budget: int) -> tuple[int, ...]:
        """The paper's widths, divided by 1, 2, 4 or 8 so that the inner layers have at most half of the budget."""
        choices = [tuple(width // divisor for width in PAPER_HIDDEN) for divisor in _SHRINK]
        fixed = (self.n_generators * mlp_size((self.features, *widths)) for widths in choices)
        return next((widths for widths, n in zip(choices, fixed, strict=True) if n <= budget / 2), choices[-1])

    def _too_small(self, budget: int, hidden: Sequence[int], all_bits: range) -> str:
        """The message for a budget below the smallest generator whose chunk indices have a number of `all_bits`."""
        small, wide = self._smallest(hidden, all_bits), self._with_more_qubits(budget, hidden)
        is_limited = wide.total <= budget or 2 * wide.total <= small.total
        limit = f" with {setting('max_qubits')}={all_bits[-1] + self.feature_qubits}" if is_limited else ""
        remedy = setting("budget")
        if wide.total <= budget:
            remedy += f" or {setting('max_qubits')} ({wide.n_qubits} qubits need only {wide.total} parameters)"
        elif is_limited:
            remedy += f" ({wide.total} parameters are enough with {setting('max_qubits')}={wide.n_qubits})"
        smaller = "hidden" if hidden else "features" if self.features > 1 else None
        reduced = f" or reduce {setting(smaller)}" if smaller and wide.total > budget else ""
        return (
            f"{setting('budget')} {budget} is too small: the smallest generator for {self.m} parameters{limit} has "
            f"{small.total} trainable parameters (chunk_size={small.chunk_size}, {small.n_qubits} qubits); "
            f"raise {remedy}{reduced}"
        )

    def _with_more_qubits(self, budget: int, hidden: Sequence[int]) -> QPACount:
        """Without a limit of qubits: the counts with the fewest qubits within the budget, otherwise the smallest."""
        all_bits = range(1, 1 + self.share.bit_length())
        counts = (self.count(n_chunks(self.share, 2**bits), hidden) for bits in all_bits)
        return next((count for count in counts if count.total <= budget), self._smallest(hidden, all_bits))

    def _smallest(self, hidden: Sequence[int], all_bits: range) -> QPACount:
        """The counts with the fewest trainable parameters."""
        sizes = {n_chunks(self.share, 2**bits) for bits in all_bits}
        return min((self.count(size, hidden) for size in sizes), key=lambda count: count.total)

    def _largest_chunk(self, budget: int, bits: int, hidden: Sequence[int]) -> int | None:
        """Largest chunk size of one generator within the budget whose chunk index has exactly `bits` bits."""
        lowest = n_chunks(self.share, 2**bits)
        highest = self.share if bits == 1 else n_chunks(self.share, 2 ** (bits - 1)) - 1
        *inner, last = self.inputs(bits, hidden), *hidden
        fixed = self.angles(bits) + mlp_size((*inner, last))
        size = min(math.floor((budget - fixed) / (last + bool(hidden))), highest, self.share)
        return size if size >= max(lowest, 1) else None


def n_chunks(m: int, chunk_size: int) -> int:
    return -(-m // chunk_size)


def index_bits(chunks: int) -> int:
    """Bits, and qubits, for the index of a chunk: max(1, ceil(log2 chunks))."""
    return max(1, (chunks - 1).bit_length())


def mlp_size(widths: Sequence[int], *, has_bias: bool = True) -> int:
    """Weights and biases of linear layers between consecutive widths."""
    return sum((a + has_bias) * b for a, b in itertools.pairwise(widths))
