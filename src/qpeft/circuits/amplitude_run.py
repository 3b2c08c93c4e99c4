"""From inputs to what is read of the circuit, with a closed-form gradient: chunks of tokens that fit the cache.

The states of a chunk are columns, (2**N, T), so that a matrix on a group of wires is one product, whichever wires they
are, and the tokens, which lie next to each other, are what vector instructions run over.

With a = x / ||x||, psi = U a and quadratic q, the gradient with respect to x is

    U^+ (dq/dpsi^T g - 2 <g, q> psi) / ||x||

so the final states, the norms and q are all that is kept; a matrix m of U, taken for unitary, has gradient
(sum lam psi^+) m with lam and psi behind it. Earlier states are computed back from the final one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.circuits.amplitude_readout import Readout
from qpeft.circuits.amplitude_tables import Ring
from qpeft.circuits.precision import full_precision

SMALLEST_NORM = 1e-8
CHUNK = 2**17  # amplitudes; measured: state and gradient of a chunk stay in the second-level cache


class Circuit(NamedTuple):
    """S stages of rotations, a unitary matrix for each of G groups of neighbouring wires; a ring between each two."""

    stages: tuple[tuple[Tensor, ...], ...]  # S of G of (2**k, 2**k)
    ring: Ring
    readout: Readout
    weights: Tensor | None = None  # (F, N'): what is wanted is q^T weights; None: q itself


def run(x: Tensor, circuit: Circuit) -> Tensor:
    """What is read of `circuit` (T, N'), started in the normalised x (T, d), d <= 2**N; for x = 0 it is 0."""
    matrices = [matrix for stage in circuit.stages for matrix in stage]
    fixed = _Fixed(len(circuit.stages), circuit.ring, circuit.readout)
    return _Run.apply(x, circuit.weights, fixed, *matrices)


class _Fixed(NamedTuple):
    """What has no gradient."""

    n_stages: int
    ring: Ring
    readout: Readout


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, fixed: _Fixed, *matrices: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=1).clamp_min(SMALLEST_NORM)
        states, features = [], []
        for part in _chunks(len(x), len(fixed.ring.source), x.device):
            states.append(_evolve(x[part] / norms[part, None], fixed, matrices))
            features.append(fixed.readout.read(states[-1]))
        q = torch.cat(features, dim=1)
        ctx.fixed, ctx.width, ctx.n_states = fixed, x.shape[1], len(states)
        ctx.save_for_backward(norms, q, weights, *states, *matrices)
        return q.mT.contiguous() if weights is None else q.mT @ weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        norms, q, weights, *rest = ctx.saved_tensors
        return _gradient(grad, norms, q, weights, rest[: ctx.n_states], rest[ctx.n_states :], ctx)


def _chunks(n_tokens: int, size: int, device: torch.device) -> Iterator[slice]:
    step = max(1, CHUNK // size) if device.type == "cpu" else max(1, n_tokens)
    return (slice(start, min(start + step, n_tokens)) for start in range(0, max(1, n_tokens), step))


def _stages(matrices: Sequence[Tensor], n_stages: int) -> list[Sequence[Tensor]]:
    n_groups = len(matrices) // n_stages
    return [matrices[stage * n_groups : (stage + 1) * n_groups] for stage in range(n_stages)]


def _evolve(a: Tensor, fixed: _Fixed, matrices: Sequence[Tensor]) -> Tensor:
    """Final states (2**N, T) from rows a (T, d)."""
    state = torch.nn.functional.pad(a, (0, len(fixed.ring.source) - a.shape[1])).mT.to(matrices[0].dtype)
    for number, stage in enumerate(_stages(matrices, fixed.n_stages)):
        state = _turn(state[fixed.ring.source] if number else state, stage)
    return state


def _turn(state: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each group's matrix on its axis of the states (2**N, T)."""
    shape, before = state.shape, len(state)
    for matrix in reversed(matrices):
        before //= len(matrix)
        state = torch.bmm(matrix.expand(before, -1, -1), state.reshape(before, len(matrix), -1))
    return state.view(shape)


@full_precision
def _gradient(
    grad: Tensor,
    norms: Tensor,
    q: Tensor,
    weights: Tensor | None,
    states: Sequence[Tensor],
    matrices: Sequence[Tensor],
    ctx: Any,
) -> tuple[Tensor | None, ...]:
    g = grad.mT.contiguous() if weights is None else weights @ grad.mT
    shift = (g * q).sum(0) * (norms > SMALLEST_NORM)
    of_x = grad.new_empty(len(grad), ctx.width) if ctx.needs_input_grad[0] else None
    back = _Back(ctx.fixed, matrices, of_x is not None)
    for part, psi in zip(_chunks(len(grad), len(ctx.fixed.ring.source), grad.device), states, strict=True):
        lam = back.walk(ctx.fixed.readout.pull(g[:, part], shift[part], psi), psi)
        if of_x is not None:
            torch.div(lam[: ctx.width].mT, norms[part, None], out=of_x[part])
    of_weights = None if weights is None else q @ grad
    return of_x, of_weights, None, *back.of_matrices()


class _Back:
    """The way back through the stages; what it meets adds up to the gradients of the matrices."""

    def __init__(self, fixed: _Fixed, matrices: Sequence[Tensor], to_start: bool) -> None:
        self._stages = _stages(matrices, fixed.n_stages)
        self._inverses = [[matrix.mH.resolve_conj() for matrix in stage] for stage in self._stages]
        self._outer = [[torch.zeros_like(matrix) for matrix in stage] for stage in self._stages]
        self._ring, self._to_start = fixed.ring, to_start

    def walk(self, lam: Tensor, psi: Tensor) -> Tensor:
        """From the final states (2**N, T) and their gradient to the gradient of the real first states."""
        for number in range(len(self._stages) - 1, -1, -1):
            self._add(number, lam, psi)
            if number:
                psi = _turn(psi, self._inverses[number])[self._ring.target]
            if number or self._to_start:
                lam = _turn(lam, self._inverses[number])
            if number:
                lam = lam[self._ring.target]
        return lam.real

    def _add(self, number: int, lam: Tensor, psi: Tensor) -> None:
        before = 1
        for outer in self._outer[number]:
            rows, columns = (block.view(before, len(outer), -1) for block in (lam, psi))
            outer += torch.bmm(rows, columns.mH).sum(0)
            before *= len(outer)

    def of_matrices(self) -> list[Tensor]:
        pairs = zip(self._outer, self._stages, strict=True)
        return [outer @ matrix for row in pairs for outer, matrix in zip(*row, strict=True)]
