"""Banks of factors: all U and V of one width, computed in one batch from few trained parameters.

A bank is a module with `forward() -> (n, w, K)`: n matrices of width w with K columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from qpeft.circuits.columns import basis_columns
from qpeft.circuits.counting import check_rank, column_qubits, count_orthogonal
from qpeft.circuits.lie import count_lie, lie_columns, lie_matrix
from qpeft.circuits.numerics import cached_tables
from qpeft.circuits.orthogonal import orthogonal_columns
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.quantum_peft.layout import Layout
from qpeft.methods.quantum_peft.quantize import quantize
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig

_FRAMED_STD = 0.1  # inside a frame the initial columns are near the frame's leading directions


class Bank(nn.Module):
    """n factors (w, K), each computed from one row of `numbers` (n, p)."""

    def __init__(
        self,
        config: QuantumPeftGeneratorConfig,
        names: Sequence[str],
        width: int,
        rank: int,
        init: SeededInit,
    ) -> None:
        super().__init__()
        self.config, self.width, self.rank = config, width, rank
        self.check()
        drawn = torch.stack([self.draw(init, name) for name in names])
        # quantized parameters are stored themselves, not as a distance from the initial values
        trained, quantized = not config.freeze_angles, config.bits is not None
        self.numbers = Folded(drawn, self.scale(), trained=trained, keep_initial=trained and quantized)

    @classmethod
    def count(cls, config: QuantumPeftGeneratorConfig, width: int, rank: int) -> int:
        """p, the parameters of one factor."""
        raise NotImplementedError

    def scale(self) -> float:
        """The factor folded into the learning rate."""
        assert self.config.angle_scale is not None
        return self.config.angle_scale

    def check(self) -> None:
        """Raise ConfigError if the options do not fit the width and rank."""

    def draw(self, init: SeededInit, name: str) -> Tensor:
        """The initial parameters of one factor, shape (p,)."""
        raise NotImplementedError

    def columns(self, parameters: Tensor) -> Tensor:
        """(n, p) -> (n, w, K)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The factors (n, w, K)."""
        return self.columns(self.parameters_used())

    def parameters_used(self) -> Tensor:
        """The parameters (n, p), quantized if `bits` is set."""
        parameters = self.numbers()
        return (
            parameters if self.config.bits is None else quantize(parameters, self.config.bits, self.config.group_size)
        )


class PauliBank(Bank):
    """Columns of RY and CZ circuits, or of a control with other entanglers."""

    @classmethod
    def count(cls, config: QuantumPeftGeneratorConfig, width: int, rank: int) -> int:
        return count_orthogonal(width, config.n_layers, config.construction)

    def check(self) -> None:
        width, construction = self.width, self.config.construction
        check_rank(self.rank, width, construction)
        count, padded = (count_orthogonal(width, self.config.n_layers, how) for how in (construction, "pad"))
        if construction.startswith("qsd") and count > max(padded, width / 2):  # chosen by the user, not by auto
            warnings.warn(
                f"the recursion needs {count} parameters for {width} rows; construction='pad' needs {padded}",
                stacklevel=2,
            )
        assert self.config.columns is not None
        self.basis = basis_columns(self.config.columns, column_qubits(width, construction), self.rank)

    def draw(self, init: SeededInit, name: str) -> Tensor:
        shape = (self.count(self.config, self.width, self.rank),)
        if self.config.frame is not None:
            return init.normal(name, shape, std=_FRAMED_STD)
        return init.uniform(name, shape, math.pi)

    def columns(self, parameters: Tensor) -> Tensor:
        return orthogonal_columns(
            parameters,
            self.width,
            self.config.n_layers,
            self.basis,
            self.config.construction,
            signs=self._signs(),
        )

    def _signs(self) -> Callable[[int], Tensor] | None:
        if self.config.entangler == "cz":
            return None
        draw = _no_signs if self.config.entangler == "none" else _random_signs
        return partial(draw, self.config.n_layers, self.config.seed)


@cached_tables()
def _random_signs(n_layers: int, seed: int, n_qubits: int) -> Tensor:
    """One draw for all circuits of a size, (2 L, 2**n_qubits)."""
    drawn = SeededInit(seed).uniform(f"signs.{n_qubits}", (2 * n_layers, 2**n_qubits), 1.0)
    return torch.where(drawn < 0, -1.0, 1.0)


def _no_signs(n_layers: int, seed: int, n_qubits: int) -> Tensor:
    return torch.ones(2 * n_layers, 2**n_qubits)


class LieBank(Bank):
    """Columns of exp(A) or of another Lie-algebra map, A skew-symmetric with K' nonzero columns."""

    @classmethod
    def count(cls, config: QuantumPeftGeneratorConfig, width: int, rank: int) -> int:
        return count_lie(width, k) if (k := _lie_rank(config, width)) else 0

    def check(self) -> None:
        if k := _lie_rank(self.config, self.width):
            lie_columns(torch.zeros(self.width, k), self.rank)  # raises ConfigError if it does not fit

    def draw(self, init: SeededInit, name: str) -> Tensor:
        std = 1.0 / math.sqrt(self.width) if self.config.frame is None else _FRAMED_STD
        return init.normal(name, (self.count(self.config, self.width, self.rank),), std=std)

    def columns(self, parameters: Tensor) -> Tensor:
        if not (k := _lie_rank(self.config, self.width)):
            return parameters.new_ones(len(parameters), 1, 1)
        b = lie_matrix(parameters, self.width, k)
        return lie_columns(b, self.rank, self.config.lie_map, self.config.taylor_order)


def _lie_rank(config: QuantumPeftGeneratorConfig, width: int) -> int:
    """K', at most width - 1: further columns have no free entries. 0 for width 1, whose only column is (1)."""
    return min(config.lie_rank, width - 1)


class KroneckerBank(Bank):
    """Control: each column is the Kronecker product of two small trained vectors, cut to the width.

    A vectors of length a and B of length b, a * b >= w, A * B = K, in all combinations.
    """

    @classmethod
    def count(cls, config: QuantumPeftGeneratorConfig, width: int, rank: int) -> int:
        (a, b), (n_a, n_b) = _sides(width), _divisors(rank)
        return n_a * a + n_b * b

    def draw(self, init: SeededInit, name: str) -> Tensor:
        (a, b), (n_a, n_b) = _sides(self.width), _divisors(self.rank)
        left = init.normal(f"{name}.left", (n_a * a,), std=1 / math.sqrt(a))
        return torch.cat([left, init.normal(f"{name}.right", (n_b * b,), std=1 / math.sqrt(b))])

    def columns(self, parameters: Tensor) -> Tensor:
        (a, b), (n_a, n_b) = _sides(self.width), _divisors(self.rank)
        left, right = parameters.split([n_a * a, n_b * b], dim=1)
        products = torch.einsum("nia,njb->nabij", left.view(-1, n_a, a), right.view(-1, n_b, b))
        return products.reshape(len(parameters), a * b, self.rank)[:, : self.width]


class CoreBank(Bank):
    """Control: a trained matrix (R, R) between two frames, initialized to 0 and without lambda."""

    @classmethod
    def count(cls, config: QuantumPeftGeneratorConfig, width: int, rank: int) -> int:
        return width * rank

    def scale(self) -> float:
        return self.config.lambda_scale

    def draw(self, init: SeededInit, name: str) -> Tensor:
        return torch.zeros(self.width * self.rank)

    def columns(self, parameters: Tensor) -> Tensor:
        return parameters.view(-1, self.width, self.rank)


BANKS: dict[str, type[Bank]] = {"pauli": PauliBank, "lie": LieBank, "kronecker": KroneckerBank, "core": CoreBank}


def count_drawn(config: QuantumPeftGeneratorConfig, layout: Layout) -> int:
    """The parameters of all factors, trained or frozen."""
    return sum(len(names) * BANKS[config.family].count(config, *key) for key, names in layout.banks.items())


def _sides(width: int) -> tuple[int, int]:
    a = math.isqrt(width - 1) + 1
    return a, -(-width // a)


def _divisors(rank: int) -> tuple[int, int]:
    """A * B = K with A and B as equal as can be, A >= B."""
    b = next(d for d in range(math.isqrt(rank), 0, -1) if rank % d == 0)
    return rank // b, b
