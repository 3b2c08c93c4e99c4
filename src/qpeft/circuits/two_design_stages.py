"""Products of a block with small matrices on groups of its wires, forth and back.

A matrix product can turn the front axis of the block to the back or take it back from there, so that no axis is ever
copied alone: in turn one stage goes forth and the next goes back over the groups, and the last group stays at the
front while they turn. The axes are (front groups, last group, K) after a stage back and (last group, K, front groups)
after a stage forth; the block arrives as (K, front groups, last group), columns contiguous.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.circuits.precision import full_precision


def run_stages(stages: list[list[Tensor]], diagonals: Tensor, x: Tensor) -> Tensor:
    """Apply S stages to x (M, 2**N, K), with a diagonal (S-1, 2**N) between each two: (M, 2**N, K).

    A stage is one matrix (M, n, n) for each group of neighbouring wires, n = 2**wires, first wires first.
    """
    n_modules, size, k = x.shape
    last = stages[0][-1].shape[-1]
    signs = diagonals.reshape(-1, size // last, last)
    x = _Stages.apply(x.mT.contiguous(), signs, len(stages[0]), *chain.from_iterable(stages))
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
    """x (M, K, 2**N), signs (S-1, front, last) and all stages' matrices -> block (front, last, K), turned for even S.

    Its own function because autograd would leave every gradient in the other order of axes, to be copied.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, signs: Tensor, n_groups: int, *matrices: Tensor) -> Tensor:
        ctx.shape, ctx.steps = x.shape, _steps(len(signs) + 1, n_groups)
        inputs = list(matrices)
        for step in ctx.steps:
            if step.is_matrix:
                inputs[step.operand] = x
                x = _turn(matrices[step.operand], x, step.from_last, step.to_last)
            else:
                x = _change_signs(x, signs[step.operand], turned=step.from_last)
        ctx.save_for_backward(signs, *matrices, *inputs)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        signs, *saved = ctx.saved_tensors
        matrices, inputs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        of_x, of_matrices = _gradient(grad, ctx.steps, signs, matrices, inputs)
        return of_x.view(ctx.shape), None, None, *of_matrices


@full_precision
def _gradient(
    grad: Tensor, steps: list[_Step], signs: Tensor, matrices: list[Tensor], inputs: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    of_matrices = list(matrices)
    for index, is_matrix, from_last, to_last in reversed(steps):
        if is_matrix:
            matrix = matrices[index]
            n = matrix.shape[-1]
            of_matrices[index] = _rows(grad, n, to_last) @ _rows(inputs[index], n, from_last).mT
            grad = _turn(matrix.mT, grad, to_last, from_last)
        else:
            grad = _change_signs(grad, signs[index], turned=from_last)
    return grad, of_matrices


def _steps(n_stages: int, n_groups: int) -> list[_Step]:
    """From (K, front, last) to (front, last, K), then in turn to (last, K, front) and back."""
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
    return x.reshape(len(x), -1, n).mT if last else x.reshape(len(x), n, -1)


def _turn(matrix: Tensor, x: Tensor, from_last: bool, to_last: bool) -> Tensor:
    """Apply `matrix` (M, n, n) to the front or last axis of x and leave the axis at the front or last."""
    rows = _rows(x, matrix.shape[-1], from_last)
    return rows.mT @ matrix.mT if to_last else matrix @ rows


def _change_signs(x: Tensor, signs: Tensor, turned: bool) -> Tensor:
    """x times signs (front, last), in place: x is the fresh result of a product."""
    front, last = signs.shape
    if turned:
        return x.view(len(x), last, -1, front).mul_(signs.mT.contiguous()[:, None])
    return x.view(len(x), front, last, -1).mul_(signs[..., None])
