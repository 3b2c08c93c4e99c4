"""Probabilities estimated from a number of shots, with gradients by parameter shift."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft import circuits
from qpeft.errors import ConfigError

GRADIENTS = ("auto", "adjoint", "parameter-shift")
_SHOTS_PER_OUTCOME = 10


class ParameterShift:
    """angles (L, N) -> probabilities (D,), exact or counted over `shots`; differentiable by parameter shift.

        dp/dtheta = 1/2 (p(theta + pi/2) - p(theta - pi/2)),

    exact for exact probabilities and unbiased for counted ones; a gradient costs 2 L N circuits. The counts come
    from one stream of `seed`, so a run repeats; the same angles give other counts at every call.
    """

    def __init__(self, shots: int | None, seed: int) -> None:
        self.shots = shots
        self._random = np.random.Generator(np.random.Philox(seed))

    def __call__(self, angles: Tensor) -> Tensor:
        """Probabilities (D,), in the dtype of `angles`."""
        return _ParameterShiftFunction.apply(angles, self)

    @torch.no_grad()
    def estimate(self, angles: Tensor) -> Tensor:
        """Frequencies over the shots (exact probabilities without shots), no gradient."""
        exact = circuits.probabilities(angles)
        if self.shots is None:
            return exact
        p = exact.double().cpu().numpy()
        counts = self._random.multinomial(self.shots, p / p.sum())
        return torch.from_numpy(counts / self.shots).to(exact)


class _ParameterShiftFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, backend: ParameterShift) -> Tensor:
        ctx.save_for_backward(angles)
        ctx.backend = backend
        return backend.estimate(angles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (angles,) = ctx.saved_tensors
        found = torch.empty_like(angles)
        for index in np.ndindex(*angles.shape):
            shift = torch.zeros_like(angles)
            shift[index] = math.pi / 2
            difference = ctx.backend.estimate(angles + shift) - ctx.backend.estimate(angles - shift)
            found[index] = 0.5 * (gradient @ difference)
        return found, None


def choose(backend: str, shots: int | None, gradient: str, n_qubits: int, seed: int) -> ParameterShift | None:
    """What stands in for the exact simulator with adjoint gradients; None for that itself.

    Raises:
        ConfigError: an unknown name, shots out of range, or a gradient that shots cannot have.
    """
    if backend != "exact":
        raise ConfigError(f"unknown backend '{backend}'; choose one of exact")
    if gradient not in GRADIENTS:
        raise ConfigError(f"unknown gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}")
    if shots is None:
        return ParameterShift(None, seed) if gradient == "parameter-shift" else None
    if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
        raise ConfigError(f"shots must be a positive integer or None, got {shots}")
    if gradient == "adjoint":
        raise ConfigError("gradient='adjoint' needs exact probabilities; use gradient='parameter-shift' with shots")
    if shots < _SHOTS_PER_OUTCOME * 2**n_qubits:
        warnings.warn(
            f"{shots} shots for {2**n_qubits} outcomes: most probabilities will be dominated by sampling noise",
            stacklevel=3,
        )
    return ParameterShift(shots, seed)
