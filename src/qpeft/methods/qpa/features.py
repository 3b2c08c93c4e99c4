"""The features of every chunk: from the circuit's probabilities, or from a classical control."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft.circuits.exact import seconds_in_stages
from qpeft.core.generator import CircuitModule
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import setting
from qpeft.methods.qpa.budget import QPACount
from qpeft.methods.qpa.settings import QPASettings

_FLOOR = 1e-6  # of 2^N p; without it the slope of a root at p = 0 is infinite and the gradient of the angles NaN
_SLOW = 0.016  # s; 2^17 amplitudes times stages
_NULL = 1e-6  # of the largest eigenvalue: smaller ones would raise float32's rounding errors above 1e-4


def scaled(probabilities: Tensor) -> Tensor:
    """(2^N p - 1) / sqrt(2), shape (D,): mean 0 and variance 1 for a random real circuit."""
    return (probabilities * probabilities.numel() - 1.0) * math.sqrt(0.5)


def root(probabilities: Tensor) -> Tensor:
    """(sqrt(2^N p) - a) / sqrt(1 - a^2) with a = sqrt(2 / pi), shape (D,): mean 0 and variance 1 for a random real
    circuit, whose amplitudes are normal.

    The distribution has lighter tails than that of p: the chunks have about equal norms.
    """
    mean = math.sqrt(2 / math.pi)
    return ((probabilities * probabilities.numel()).clamp(min=_FLOOR).sqrt() - mean) / math.sqrt(1 - mean**2)


def squash(probabilities: Tensor) -> Tensor:
    """q - mean(q) with q = (0.6 tanh(0.1 * 2^(N-1) p))^0.15 over all D basis states, shape (D,)."""
    x = (probabilities * probabilities.numel()).clamp(min=_FLOOR)
    q = (0.6 * torch.tanh(0.05 * x)) ** 0.15
    return q - q.mean()


def whitening(features: Tensor) -> Tensor:
    """The symmetric S (..., K, K) that makes features F (..., C, K) orthogonal: (F S)^T F S = C / K identity.

    The rows of F S have norm 1 on average. If F has a rank R below K, it is C / R times the projection onto its rows.
    """
    values, vectors = torch.linalg.eigh(features.double().mT @ features.double())
    is_kept = values > _NULL * values[..., -1:]
    scale = (features.shape[-2] / is_kept.sum(-1, keepdim=True)).sqrt()
    roots = torch.where(is_kept, scale * values.clamp(min=1e-300).rsqrt(), 0.0)
    return (vectors * roots[..., None, :] @ vectors.mT).float()


FEATURE_MAPS = {"whitened": root, "scaled": scaled, "squash": squash}  # before the whitening


class CircuitFeature(CircuitModule):
    """Features of each chunk from the probabilities of a circuit, with trained or frozen angles.

    The K features of chunk c are made from the probabilities of the basis states K c, ..., K c + K - 1.

    Args:
        ansatz: The circuit.
        angles: Of shape `ansatz.angle_shape`, or `(G, *ansatz.angle_shape)` for the circuits of G generators.
        chunks: Number of chunks C of one circuit, and features K of a chunk.
        feature_map: A key of `FEATURE_MAPS`.
    """

    def __init__(self, ansatz: Ansatz, angles: Folded, chunks: tuple[int, int], feature_map: str) -> None:
        super().__init__()
        self._ansatz = ansatz
        self.angles = angles
        self.chunks = chunks
        self.feature_map = FEATURE_MAPS[feature_map]

    @property
    def ansatz(self) -> Ansatz:
        return self._ansatz

    @property
    def is_trained(self) -> bool:
        return self.angles.tau is not None

    @property
    def n_circuits(self) -> int:
        start = self.angles.start
        return len(start) if start.ndim > len(self.ansatz.angle_shape) else 1

    def forward(self, *, initial: bool = False) -> Tensor:
        """Features (C, K), or (G, C, K); initial features are exact, whatever the backend."""
        run = partial(exact_probabilities, self.ansatz) if initial or self.backend is None else self.backend
        angles = self.angles(initial=initial)
        if angles.ndim == len(self.ansatz.angle_shape):
            return self._of_chunks(run(angles))
        return torch.stack([self._of_chunks(run(each)) for each in angles])

    def _of_chunks(self, probabilities: Tensor) -> Tensor:
        """(D,) -> (C, K)"""
        n_chunks, k = self.chunks
        return self.feature_map(probabilities)[: n_chunks * k].view(n_chunks, k)


def slow_circuit(config: QPASettings, count: QPACount) -> str | None:
    """A warning with the time of a circuit that is slow to simulate; None for other circuits."""
    if config.feature_source not in ("qnn", "qnn_frozen"):
        return None
    ansatz = Ansatz(config.ansatz, count.n_qubits, config.n_layers)
    seconds = seconds_in_stages(ansatz)
    if seconds < _SLOW:
        return None
    return (
        f"one evaluation of ansatz {ansatz.name} with {ansatz.n_qubits} qubits takes about {seconds:.2g} s on one CPU "
        f"core, and a step needs {config.n_generators}: the ansatz has no fast simulation; for fewer qubits use a "
        f"larger {setting('chunk_size')}, or register your own ansatz with `probabilities`"
    )


def make_feature(config: QPASettings, count: QPACount, init: SeededInit) -> nn.Module | None:
    """The module that computes the features of `config.feature_source`, (C, K) or (G, C, K); None for "none"."""
    assert config.angle_scale is not None
    source, several = config.feature_source, (config.n_generators,) if config.n_generators > 1 else ()
    if source == "none":
        return None
    chunks = count.n_chunks // config.n_generators, config.n_features
    if source in ("free", "random"):
        shape = chunks if config.n_features > 1 else chunks[:1]  # release 0.1 stores one value per chunk
        values = init.normal("feature", (*several, *shape))
        return Folded(values, config.angle_scale, trained=source == "free")
    ansatz = Ansatz(config.ansatz, count.n_qubits, config.n_layers)
    angles = init.uniform("angles", (*several, *ansatz.angle_shape), math.pi)
    folded = Folded(angles, config.angle_scale, trained=source == "qnn")
    return CircuitFeature(ansatz, folded, chunks, str(config.feature_map))
