"""Effective rank of generated matrices: how many directions they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from qpeft.compare.measurements import ranks
from qpeft.diagnostics.finding import Measurement
from qpeft.errors import ConfigError

_NARROW = 0.5  # of the possible rank: below it the sentence reports the difference
_ONE = 1.5  # below it, the entropy rank is practically that of one direction


@dataclass(frozen=True)
class MatrixRank:
    """Ranks of one matrix, from its singular values.

    `entropy_rank` = exp(-sum p ln p) with p = s / sum s, from 1 to `possible`; `stable_rank` = ||W||_F^2 / ||W||_2^2;
    `numerical_rank` counts the singular values above 1e-6 of the largest. All are 0 for a matrix of zeros, and none
    depends on a scalar factor of the matrix, such as LoRA's scaling.
    """

    name: str
    rows: int
    columns: int
    possible: int  # the highest rank that its shape allows
    entropy_rank: float
    stable_rank: float
    numerical_rank: int
    singular_values: tuple[float, ...]  # descending, `possible` of them


@dataclass(frozen=True)
class EffectiveRank(Measurement):
    """Ranks of all given matrices, in their order, and the means over the matrices that are not zero (0 if all are).

    `possible` is the mean of the highest ranks over the same matrices.
    """

    entropy_rank: float
    stable_rank: float
    numerical_rank: float
    possible: float
    matrices: tuple[MatrixRank, ...]

    @property
    def used(self) -> tuple[MatrixRank, ...]:
        """The matrices that are not zero."""
        return _not_zero(self.matrices)

    @property
    def sentence(self) -> str:
        if not self.used:
            return "Every matrix is zero."
        n = len(self.used)
        use = "The matrix uses" if n == 1 else f"On average, {n:,} matrices use"
        found = (
            f"{use} {self.entropy_rank:.1f} of {self.possible:.4g} possible directions "
            f"(entropy of the singular values; stable rank {self.stable_rank:.1f})"
        )
        if self.entropy_rank < _ONE < self.possible:
            return f"{found}: all rows are practically multiples of one row."
        if self.entropy_rank < _NARROW * self.possible:
            return f"{found}: less than half of the possible rank."
        return f"{found}: most of the possible rank."


def effective_rank(updates: Mapping[str, Tensor | tuple[Tensor, Tensor]]) -> EffectiveRank:
    """Ranks of generated matrices.

    Args:
        updates: By name a matrix (rows, columns), or the factors (B, A) of B A with shapes (rows, r) and (r, columns):
            such as lora_B and lora_A. Their product is never formed.

    Raises:
        ConfigError: There is no matrix, or one is not finite or has another shape.
    """
    if not updates:
        raise ConfigError("there is no matrix; give lora_B and lora_A, or matrices, by name")
    matrices = tuple(_rank(name, update) for name, update in updates.items())
    used = _not_zero(matrices) or matrices
    names = ("entropy_rank", "stable_rank", "numerical_rank", "possible")
    means = {name: fmean(getattr(matrix, name) for matrix in used) for name in names}
    return EffectiveRank(**means, matrices=matrices)


def _not_zero(matrices: tuple[MatrixRank, ...]) -> tuple[MatrixRank, ...]:
    return tuple(matrix for matrix in matrices if matrix.numerical_rank)


def _rank(name: str, update: Tensor | tuple[Tensor, Tensor]) -> MatrixRank:
    factors = (update,) if isinstance(update, Tensor) else tuple(update)
    _check(name, factors)
    wide = [factor.detach().double().cpu() for factor in factors]
    inner = min(side for factor in wide for side in factor.shape)
    values = _singular_values(wide)[:inner]
    return MatrixRank(
        name=name,
        rows=wide[0].shape[0],
        columns=wide[-1].shape[1],
        possible=inner,
        entropy_rank=ranks.effective_rank(values),
        stable_rank=ranks.stable_rank(values),
        numerical_rank=ranks.numerical_rank(values),
        singular_values=tuple(values.tolist()),
    )


def _singular_values(factors: Sequence[Tensor]) -> Tensor:
    """Singular values of the product; for two factors, from the small triangles of their QR decompositions."""
    if len(factors) == 1:
        return torch.linalg.svdvals(factors[0])
    b, a = factors
    return torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.mT).R.mT)


def _check(name: str, factors: Sequence[Tensor]) -> None:
    shapes = [tuple(factor.shape) for factor in factors]
    fits = all(len(shape) == 2 and 0 not in shape for shape in shapes)
    if not fits or len(factors) > 2 or (len(factors) == 2 and shapes[0][1] != shapes[1][0]):
        raise ConfigError(f"{name}: give a matrix, or factors (rows, r) and (r, columns); found shapes {shapes}")
    if not all(torch.isfinite(factor).all() for factor in factors):
        raise ConfigError(f"{name} contains NaN or Inf; use an earlier checkpoint")
