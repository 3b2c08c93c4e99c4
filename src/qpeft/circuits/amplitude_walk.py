"""States of many tokens on their way through a circuit, forth and back.

States are columns, (2**N, T), so that a matrix on a group of neighbouring wires is one product wherever the wires are,
and the tokens, which lie next to each other, are what vector instructions run over. Inputs and their gradients are
rows: the last group's product turns them over. Fresh memory would cost more than a product, so each walk goes to and
fro between two buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Stage = Sequence[Tensor]  # of every group of wires a unitary matrix (2**k, 2**k)


class Walk:
    """Two buffers for the states of up to T tokens."""

    def __init__(self, n_amplitudes: int, like: Tensor) -> None:
        self._buffers = [torch.empty(n_amplitudes, dtype=like.dtype, device=like.device) for _ in range(2)]

    def spare(self, *shape: int) -> Tensor:
        """The buffer in which the state is not."""
        self._buffers.reverse()
        return self._buffers[0][: prod(shape)].view(shape)

    def start(self, x: Tensor, norms: Tensor, size: int) -> Tensor:
        """Normalised rows x (T, d) as columns (size, T), zeros appended."""
        rows = self.spare(len(x), size)
        torch.div(x, norms[:, None], out=rows[:, : x.shape[1]])
        rows[:, x.shape[1] :] = 0
        return rows.mT

    def permute(self, state: Tensor, source: Tensor) -> Tensor:
        """state[source]"""
        return torch.index_select(state, 0, source, out=self.spare(*state.shape))

    def turn(self, state: Tensor, stage: Stage, out: Tensor | None = None) -> Tensor:
        """The stage's matrices, last group first, applied to states (2**N, T)."""
        shape, before = state.shape, len(state)
        for matrix in reversed(stage):
            before //= len(matrix)
            rows = _axis(state, before, len(matrix))
            into = out.view(rows.shape) if out is not None and before == 1 else self.spare(*rows.shape)
            state = torch.bmm(matrix.expand(before, -1, -1), rows, out=into).view(shape)
        return state

    def turn_over(self, state: Tensor, stage: Stage) -> Tensor:
        """As `turn`, from columns (2**N, T) to rows (T, 2**N)."""
        *groups, last = stage
        shape, before = state.shape, 1
        for matrix in groups:
            rows = _axis(state, before, len(matrix))
            state = torch.bmm(matrix.expand(before, -1, -1), rows, out=self.spare(*rows.shape)).view(shape)
            before *= len(matrix)
        rows = self.spare(shape[1], before, len(last))
        torch.bmm(_axis(state, before, len(last)).mT, last.mT.expand(before, -1, -1), out=rows.transpose(0, 1))
        return rows.view(shape[1], shape[0])


def add_outer(sums: Stage, lam: Tensor, psi: Tensor) -> None:
    """Add sum lam psi^+ over everything but a group's own axis to each group's (2**k, 2**k)."""
    before = 1
    for outer in sums:
        rows, columns = (_axis(block, before, len(outer)) for block in (lam, psi))
        outer += torch.bmm(rows, columns.mH).sum(0)
        before *= len(outer)


def _axis(state: Tensor, before: int, n: int) -> Tensor:
    """States (2**N, T) as (before, n, rest); no copy, not even of rows that `start` turned over."""
    size, n_tokens = state.shape
    return state.reshape(before, n, size // (before * n) * n_tokens)
