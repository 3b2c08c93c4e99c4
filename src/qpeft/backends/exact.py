"""The exact simulator, also with shots: counts drawn from exact probabilities."""

from __future__ import annotations

import numpy as np
import torch

from qpeft import circuits
from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError


class ExactBackend(Backend):
    """QPA's circuit by qpeft's own simulator, float64.

    With shots the counts are Multinomial(shots, p), drawn by `seed`: the same angles and seed give the same counts.
    """

    name = "exact"
    has_exact = True
    has_adjoint = True
    is_simulator = True

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        with torch.no_grad():
            exact = np.stack([circuits.probabilities(each).numpy() for each in torch.from_numpy(angles)])
        if shots is None:
            return exact
        random = np.random.Generator(np.random.Philox(seed))
        return random.multinomial(shots, exact / exact.sum(axis=1, keepdims=True)) / shots

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        leaf = torch.from_numpy(angles).requires_grad_()
        with torch.enable_grad():
            value = circuits.probabilities(leaf) @ torch.from_numpy(weights)
        return torch.autograd.grad(value, leaf)[0].numpy()

    def check(self, ansatz: Ansatz) -> None:
        if ansatz.name != "ry_ladder":
            raise ConfigError(f"the exact backend runs ry_ladder, not {ansatz.name}")
