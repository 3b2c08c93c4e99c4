"""Products of a block with small matrices on groups of its wires, and their gradients.

A matrix product can move the front axis of the block to the back or return it to the front, so that no axis needs a
copy of its own. Stages alternate between a forward and a backward pass over the groups, while the last group stays at
the front. The axes are (front groups, last group, K) after a backward stage and (last group, K, front groups) after a
forward stage; the initial block is (K, front groups, last group), with contiguous columns.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.numerics import full_precision, once_differentiable

SMALL = (
    16  # measured: below it, a product with the small matrix on the right takes twice as long as a product and a copy
)


def spread(signs: Tensor, last: int, k: int) -> Tensor:
    """Rows of signs (S-1, 2**N) as `run_stages` takes them, (S-1, 2**N * K), for a last group of `last` states.

    Rows alternate between the two orders of the axes, (front, last, K) and (last, K, front).
    """
    rows = signs.reshape(len(signs), -1, last, 1).expand(-1, -1, -1, k)
    return torch.stack([row.permute(1, 2, 0).flatten() if i % 2 else row.flatten() for i, row in enumerate(rows)])


def run_stages(stages: list[list[Tensor]], diagonals: Tensor, x: Tensor) -> Tensor:
    """Apply S stages to x (M, 2**N, K), with a diagonal between each two: (M, 2**N, K).

    A stage is one orthogonal matrix (M, n, n) for each group of neighbouring wires, n = 2**wires, first wires first;
    the diagonals are the result of `spread` for rows of +-1, repeated cyclically when there are fewer than S-1. The
    gradient uses that the inverse of both is their transpose.
    """
    n_modules, size, k = x.shape
    last = stages[0][-1].shape[-1]
    x = _Stages.apply(x.mT.contiguous(), diagonals, len(stages[0]), *chain.from_iterable(stages))
    if len(stages) % 2 == 0:
        x = x.view(n_modules, last, k, -1).permute(0, 3, 1, 2)
    return x.reshape(n_modules, size, k)


class _Step(NamedTuple):
    """One factor: a group's matrix, with its axis before and after, or a diagonal (`is_matrix` False)."""

    operand: int
    is_matrix: bool = True
    from_last: bool = False
    to_last: bool = False


class _Stages(torch.autograd.Function):
    """x (M, K, 2**N), diagonals as `spread` and all stages' matrices -> block (front, last, K), turned for even S.

    Only the result is stored; the backward pass recomputes earlier blocks from it. Allocating memory for every product
    would cost more than the product, so each walk alternates between two buffers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, signs: Tensor, n_groups: int, *matrices: Tensor) -> Tensor:
        ctx.shape, ctx.steps = x.shape, _steps(len(matrices) // n_groups, n_groups)
        walk = _Walk(x)
        for step in ctx.steps:
            if step.is_matrix:
                walk.turn(matrices[step.operand], step.from_last, step.to_last)
            else:
                walk.change_signs(signs[step.operand % signs.shape[0]])
        ctx.save_for_backward(signs, walk.block, *matrices)
        return walk.block

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_x, of_matrices = _gradient(grad, ctx.steps, *ctx.saved_tensors)
        return of_x.view(ctx.shape), None, None, *of_matrices


@full_precision
def _gradient(
    grad: Tensor, steps: list[_Step], signs: Tensor, block: Tensor, *matrices: Tensor
) -> tuple[Tensor, list[Tensor]]:
    of_matrices = list(matrices)
    walk, slope = _Walk(block), _Walk(grad)
    for index, is_matrix, from_last, to_last in reversed(steps):
        if is_matrix:
            inverse = matrices[index].mT
            walk.turn(inverse, to_last, from_last)
            n = inverse.shape[-1]
            of_matrices[index] = _rows(slope.block, n, to_last) @ _rows(walk.block, n, from_last).mT
            slope.turn(inverse, to_last, from_last)
        else:
            walk.change_signs(signs[index % signs.shape[0]])
            slope.change_signs(signs[index % signs.shape[0]])
    return slope.block, of_matrices


class _Walk:
    """A block and two buffers for its products; the initial tensor is not changed."""

    def __init__(self, block: Tensor) -> None:
        self.block = block
        self._buffers = [torch.empty(block.shape, dtype=block.dtype, device=block.device).flatten() for _ in range(2)]

    def turn(self, matrix: Tensor, from_last: bool, to_last: bool) -> None:
        """Apply `matrix` (M, n, n) to the front or last axis of the block; the axis ends at the front or last."""
        rows = _rows(self.block, matrix.shape[-1], from_last)
        out = self._buffers[0].view(rows.mT.shape if to_last else rows.shape)
        if not to_last:
            torch.bmm(matrix, rows, out=out)
        elif matrix.shape[-1] < SMALL:
            out.copy_((matrix @ rows).mT)
        else:
            torch.bmm(rows.mT, matrix.mT, out=out)
        self.block = out
        self._buffers.reverse()

    def change_signs(self, signs: Tensor) -> None:
        """Multiply by signs (2**N * K,) in the order of the present axes, in place."""
        self.block.view(-1, signs.shape[0]).mul_(signs)


@lru_cache(maxsize=64)
def _steps(n_stages: int, n_groups: int) -> list[_Step]:
    """From (K, front, last) to (front, last, K), then alternately to (last, K, front) and back."""
    steps = []
    for stage in range(n_stages):
        *groups, end = range(stage * n_groups, (stage + 1) * n_groups)
        turned = stage % 2 == 0
        if stage:
            steps.append(_Step(stage - 1, is_matrix=False, from_last=turned))
        if turned:
            steps.append(_Step(end, from_last=stage == 0))
            steps += [_Step(group, from_last=True) for group in reversed(groups)]
        else:
            steps += [*(_Step(group, to_last=True) for group in groups), _Step(end)]
    return steps


def _rows(x: Tensor, n: int, last: bool) -> Tensor:
    """The block as (M, n, rest), n its last or its front axis."""
    return x.reshape(x.shape[0], -1, n).mT if last else x.reshape(x.shape[0], n, -1)
