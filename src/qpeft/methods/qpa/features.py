"""One feature per chunk: from the circuit's probabilities, or from a classical control."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qpeft import circuits
from qpeft.circuits import Ansatz
from qpeft.core.generator import CircuitModule
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.qpa.budget import QPACount
from qpeft.methods.qpa.settings import QPASettings

_SQUASH_FLOOR = 1e-6  # of 2^N p; without it the slope at p = 0 is infinite and the gradient of the angles NaN


def scaled(probabilities: Tensor) -> Tensor:
    """(2^N p - 1) / sqrt(2), shape (D,): mean 0 and variance 1 for a random real circuit."""
    return (probabilities * probabilities.numel() - 1.0) * math.sqrt(0.5)


def squash(probabilities: Tensor) -> Tensor:
    """q - mean(q) with q = (0.6 tanh(0.1 * 2^(N-1) p))^0.15 over all D basis states, shape (D,)."""
    x = (probabilities * probabilities.numel()).clamp(min=_SQUASH_FLOOR)
    q = (0.6 * torch.tanh(0.05 * x)) ** 0.15
    return q - q.mean()


FEATURE_MAPS = {"scaled": scaled, "squash": squash}


class CircuitFeature(CircuitModule):
    """Feature of chunk c from the probability of basis state c; angles (L, N), trained or frozen."""

    def __init__(self, angles: Folded, n_chunks: int, feature_map: str) -> None:
        super().__init__()
        self.angles = angles
        self.n_chunks = n_chunks
        self.feature_map = FEATURE_MAPS[feature_map]

    @property
    def ansatz(self) -> Ansatz:
        n_layers, n_qubits = self.angles.start.shape
        return Ansatz("ry_ladder", n_qubits, n_layers)

    @property
    def is_trained(self) -> bool:
        return self.angles.tau is not None

    def forward(self, *, initial: bool = False) -> Tensor:
        """Features of the C chunks, shape (C,); initial features are exact, whatever the backend."""
        run = circuits.probabilities if initial or self.backend is None else self.backend
        probabilities = run(self.angles(initial=initial))  # (D,)
        return self.feature_map(probabilities)[: self.n_chunks]


def make_feature(config: QPASettings, count: QPACount, init: SeededInit) -> nn.Module | None:
    """The module that computes the (C,) features of `config.feature_source`; None for "none"."""
    source = config.feature_source
    if source == "none":
        return None
    if source in ("free", "random"):
        values = init.normal("feature", (count.n_chunks,))
        return Folded(values, config.angle_scale, trained=source == "free")
    angles = init.uniform("angles", (config.n_layers, count.n_qubits), math.pi)
    folded = Folded(angles, config.angle_scale, trained=source == "qnn")
    return CircuitFeature(folded, count.n_chunks, config.feature_map)
