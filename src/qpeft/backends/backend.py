"""The interface of a backend, which runs one circuit at a batch of angles as one job; and the exact simulator."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft.circuits.exact import batch_probabilities

Numbers = NDArray[np.float64]


class Backend:
    """Runs circuits. One call of `run` is one job for a batch of any size.

    A backend stores the object that the user gave (a device, a sampler) and nothing of any model.
    """

    name: str
    """Shown to the user, for example "exact", "lightning.qubit", "AerSampler"."""

    has_exact: bool = False
    """Whether it returns exact probabilities, without shots."""

    has_adjoint: bool = False
    """Whether `adjoint` works, without shots."""

    default_shots: int | None = None
    """Shots that the user configured on the device; used where none are requested."""

    is_simulator: bool = False
    """Whether its only cost is computing time on this machine."""

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        """Probabilities (B, D) of the D = 2^N basis states, wire 0 the most significant bit.

        Args:
            ansatz: The circuit, started in `|0...0>`.
            angles: Radians, `(B, *ansatz.angle_shape)`.
            shots: Number of shots of each of the B circuits, for relative frequencies; None: exact probabilities.
            seed: Seed of the counts where the backend samples them itself. A user's device has its own seed.
        """
        raise NotImplementedError

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        """Gradient of sum_i weights_i p_i, shape `ansatz.angle_shape`, by one adjoint pass; weights (D,)."""
        raise NotImplementedError(f"{self.name} has no adjoint gradients")

    def check(self, ansatz: Ansatz) -> None:
        """Raise ConfigError, before any work, if this circuit cannot run here (too few wires, an unsupported gate)."""


class ExactBackend(Backend):
    """Any circuit on qpeft's own simulator, float64.

    With shots the counts are Multinomial(shots, p), drawn from `seed`: the same angles and seed give the same counts.
    """

    name = "exact"
    has_exact = True
    has_adjoint = True
    is_simulator = True

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        with torch.no_grad():
            exact = batch_probabilities(ansatz, torch.from_numpy(angles)).numpy()
        if shots is None:
            return exact
        random = np.random.Generator(np.random.Philox(seed))
        return random.multinomial(shots, exact / exact.sum(axis=1, keepdims=True)) / shots

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        leaf = torch.from_numpy(angles).requires_grad_()
        with torch.enable_grad():
            value = exact_probabilities(ansatz, leaf) @ torch.from_numpy(weights)
        return torch.autograd.grad(value, leaf)[0].numpy()
