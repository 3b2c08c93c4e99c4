"""From inputs to the measurements of a circuit, with a closed-form gradient, in chunks of tokens that fit the cache.

With a = x / ||x||, psi = U a and quadratic features q, the gradient with respect to x is

    U^+ (dq/dpsi^T g - 2 <g, q> psi) / ||x||

so only the final states, the norms and q are kept. A matrix m of U, assumed unitary, has the gradient
(sum lam psi^+) m with lam and psi behind it. Earlier states are recomputed backwards from the final one.

States are columns, (2**N, T): a matrix on a group of neighbouring wires is one product wherever the wires are, and
vector instructions run over the tokens, which are contiguous. Inputs and their gradients are rows; the last group's
product transposes them. Allocating fresh memory would cost more than a product, so each walk alternates between two
buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.amplitude_readout import Readout, Ring
from qpeft.circuits.numerics import full_precision, once_differentiable

Stage = Sequence[Tensor]  # of every group of wires a unitary matrix (2**k, 2**k)


class Walk:
    """Two buffers for the states of up to T tokens."""

    def __init__(self, n_amplitudes: int, like: Tensor) -> None:
        self._buffers = [torch.empty(n_amplitudes, dtype=like.dtype, device=like.device) for _ in range(2)]

    def spare(self, *shape: int) -> Tensor:
        """The buffer that does not hold the state."""
        self._buffers.reverse()
        return self._buffers[0][: prod(shape)].view(shape)

    def start(self, x: Tensor, norms: Tensor, size: int) -> Tensor:
        """Normalised rows x (T, d) as columns (size, T), padded with zeros."""
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
    """States (2**N, T) as (before, n, rest), without a copy, also for the transposed rows of `start`."""
    size, n_tokens = state.shape
    return state.reshape(before, n, size // (before * n) * n_tokens)


SMALLEST_NORM = 1e-8
CHUNK, TOKENS = 2**18, 128  # amplitudes computed together, but at least this number of tokens; measured


class StagedCircuit(NamedTuple):
    """S stages of rotations, a unitary matrix for each of G groups of neighbouring wires; a ring between each two."""

    stages: tuple[Stage, ...]
    ring: Ring
    readout: Readout
    weights: Tensor | None = None  # (F, F'): the result is q^T weights; None: q itself


def run(x: Tensor, circuit: StagedCircuit) -> Tensor:
    """The measurements (T, F') of `circuit`, started in the normalized x (T, d), d <= 2**N; 0 for x = 0."""
    matrices = [matrix for stage in circuit.stages for matrix in stage]
    fixed = _Fixed(len(circuit.stages), circuit.ring, circuit.readout)
    return _Run.apply(x, circuit.weights, fixed, *matrices)


class _Fixed(NamedTuple):
    """The parts of a circuit without gradients."""

    n_stages: int
    ring: Ring
    readout: Readout

    def stages(self, matrices: Sequence[Tensor]) -> list[Stage]:
        n_groups = len(matrices) // self.n_stages
        return [matrices[stage * n_groups : (stage + 1) * n_groups] for stage in range(self.n_stages)]

    def chunks(self, n_tokens: int, device: torch.device) -> list[tuple[int, int]]:
        """Start and length of each chunk; an accelerator takes all tokens at once."""
        step = max(TOKENS, CHUNK // len(self.ring.source)) if device.type == "cpu" else max(1, n_tokens)
        return [(start, min(step, n_tokens - start)) for start in range(0, max(1, n_tokens), step)]

    def read(self, psi: Tensor) -> Tensor:
        """(2**N, T) -> (F, T)"""
        if not psi.is_complex():
            return self.readout.read(psi)
        return self.readout.read(_real(psi)).unflatten(1, (psi.shape[1], 2)).sum(2)

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor, out: Tensor) -> Tensor:
        """(F, T), (T,), (2**N, T) -> `out` (2**N, T)"""
        if not psi.is_complex():
            return self.readout.pull(g, shift, psi, out)
        self.readout.pull(g.repeat_interleave(2, 1), shift.repeat_interleave(2), _real(psi), _real(out))
        return out


def _real(psi: Tensor) -> Tensor:
    """Complex (2**N, T) as real (2**N, 2T): real and imaginary part of each token."""
    return torch.view_as_real(psi).flatten(1)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, fixed: _Fixed, *matrices: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=1).clamp_min(SMALLEST_NORM)
        size, chunks = len(fixed.ring.source), fixed.chunks(len(x), x.device)
        psi, features = matrices[0].new_empty(size * len(x)), []
        walk = Walk(size * chunks[0][1], matrices[0])
        for start, n in chunks:
            state = walk.start(x.narrow(0, start, n), norms.narrow(0, start, n), size)
            final = psi.narrow(0, size * start, size * n).view(size, n)
            features.append(fixed.read(_evolve(state, fixed, matrices, walk, final)))
        q = torch.cat(features, dim=1)
        ctx.fixed, ctx.width = fixed, x.shape[1]
        ctx.save_for_backward(psi, norms, q, weights, *matrices)
        return q.mT.contiguous() if weights is None else q.mT @ weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradient(grad, ctx.fixed, ctx.width if ctx.needs_input_grad[0] else None, *ctx.saved_tensors)


def _evolve(state: Tensor, fixed: _Fixed, matrices: Sequence[Tensor], walk: Walk, final: Tensor) -> Tensor:
    *before, last = fixed.stages(matrices)
    for stage in before:
        state = walk.permute(walk.turn(state, stage), fixed.ring.source)
    return walk.turn(state, last, final)


@full_precision
def _gradient(
    grad: Tensor,
    fixed: _Fixed,
    width: int | None,
    psi: Tensor,
    norms: Tensor,
    q: Tensor,
    weights: Tensor | None,
    *matrices: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (T, width), unless width is None, of the weights and of the matrices."""
    g = grad.mT.contiguous() if weights is None else weights @ grad.mT
    shift = (g * q).sum(0) * (norms > SMALLEST_NORM)
    size, chunks = len(fixed.ring.source), fixed.chunks(len(grad), grad.device)
    of_x = None if width is None else grad.new_empty(len(grad), width)
    back = _Back(fixed, matrices, size * chunks[0][1])
    for start, n in chunks:
        final = psi.narrow(0, size * start, size * n).view(size, n)
        lam = back.pull(g.narrow(1, start, n), shift.narrow(0, start, n), final)
        if of_x is not None:
            rows = back.to_rows(lam)[:, :width]
            torch.div(rows, norms.narrow(0, start, n)[:, None], out=of_x.narrow(0, start, n))
    return of_x, None if weights is None else q @ grad, None, *back.of_matrices()


class _Back:
    """The backward pass through the stages, which accumulates the gradients of the matrices."""

    def __init__(self, fixed: _Fixed, matrices: Sequence[Tensor], n_amplitudes: int) -> None:
        self._fixed, self._matrices = fixed, matrices
        self._outer = [torch.zeros_like(matrix) for matrix in matrices]
        self._inverses = fixed.stages([matrix.mH.resolve_conj() for matrix in matrices])
        self._walks = Walk(n_amplitudes, matrices[0]), Walk(n_amplitudes, matrices[0])

    def pull(self, g: Tensor, shift: Tensor, psi: Tensor) -> Tensor:
        """The gradient of the states behind the first stage, from that of the features and final states (2**N, T)."""
        of_lam, of_psi = self._walks
        lam = self._fixed.pull(g, shift, psi, of_lam.spare(*psi.shape))
        first, *others = zip(self._fixed.stages(self._outer), self._inverses, strict=True)
        for outer, inverse in reversed(others):
            add_outer(outer, lam, psi)
            lam = of_lam.permute(of_lam.turn(lam, inverse), self._fixed.ring.target)
            psi = of_psi.permute(of_psi.turn(psi, inverse), self._fixed.ring.target)
        add_outer(first[0], lam, psi)
        return lam

    def to_rows(self, lam: Tensor) -> Tensor:
        """The gradient (T, 2**N) of the real initial amplitudes, from that of the states behind the first stage."""
        return self._walks[0].turn_over(lam, self._inverses[0]).real

    def of_matrices(self) -> list[Tensor]:
        return [outer @ matrix for outer, matrix in zip(self._outer, self._matrices, strict=True)]
