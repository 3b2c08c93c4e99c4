"""QAA's features of an input: from a circuit whose initial state is the input, or from a classical control.

With n qubits, B = 2^n and a = x / ||x||, padded with zeros to B, an orthogonal map turns a into phi, and

    p_j = |phi_j|^2
    readout z:      f_r = sqrt((B+2)/2) sum_j s_rj p_j           n features, s_rj = +-1 by bit r of j
    readout probs:  f_j = sqrt(B (B+2)/2) (p_j - sum(p) / B)     B features

so that the features of a real circuit have variance 1 on isotropic inputs of width B.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpeft import circuits
from qpeft.circuits import Ansatz
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qaa.settings import ANGLE_SCALE, QAASettings

SMALLEST_NORM = 1e-8
_WIDEST_ORTHOGONAL = 4096  # of the control that draws a B x B matrix for every module


class CircuitFeatures(nn.Module):
    """Features from the circuit; angles (L, blocks, n), trained or frozen."""

    def __init__(self, angles: Folded, settings: QAASettings) -> None:
        super().__init__()
        self.angles = angles
        self.ansatz, self.readout = settings.ansatz, settings.readout

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., n) or (..., B) of x (..., d)."""
        angles = self.angles().to(x.dtype)
        if self.readout == "probs":
            return _of_probabilities(circuits.amplitude_probabilities(x, angles, self.ansatz))
        z = circuits.amplitude_expectations(x, angles, self.ansatz)
        return z * _z_scale(2 ** z.shape[-1])


class OrthogonalFeatures(nn.Module):
    """Control "quadratic": a fixed random matrix with orthonormal columns, (B, d), replaces the circuit."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, readout: str) -> None:
        super().__init__()
        self.readout = readout
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        phi = normalized(x) @ self.matrix.to(x.dtype).mT  # (..., B)
        return _read(phi.square(), self.readout)


class LinearFeatures(nn.Module):
    """Control "linear": A x / ||x|| with a fixed standard normal A (features, d); odd in x."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x) @ self.matrix.to(x.dtype).mT


class GivensFeatures(nn.Module):
    """Control "givens": as many rotations of two coordinates as the circuit has angles.

    Each of the n angles of a block rotates its own pair of coordinates; pairs (L * blocks, 2, n) are drawn once.
    """

    pairs: Tensor

    def __init__(self, angles: Folded, pairs: Tensor, readout: str) -> None:
        super().__init__()
        self.angles, self.readout = angles, readout
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = self.angles().to(x.dtype).flatten(0, 1)  # (L * blocks, n)
        a = F.pad(normalized(x), (0, 2 ** angles.shape[-1] - x.shape[-1]))
        for angle, (i, j) in zip(angles, self.pairs.unbind(0), strict=True):
            c, s = angle.cos(), angle.sin()
            first, second = a[..., i], a[..., j]
            turned = torch.cat([c * first - s * second, s * first + c * second], -1)
            a = a.index_copy(-1, torch.cat([i, j]), turned)
        return _read(a.square(), self.readout)


def make_features(
    settings: QAASettings, width: int, name: str, init: SeededInit, device: torch.device
) -> nn.Module | None:
    """The module from x (..., width) to features, on `device`; None for "none". `init` draws by `name`.

    Raises:
        ConfigError: more than 16 qubits, or a control's matrix would be too large.
    """
    n_qubits, source = circuits.amplitude_qubits(width), settings.feature_source
    if source == "none":
        return None
    if source in ("quadratic", "linear"):
        return _with_fixed_matrix(settings, width, name, init, device)
    shape = Ansatz(settings.ansatz, n_qubits, settings.n_layers).angle_shape
    drawn = init.uniform(f"{name}.angles", shape, math.pi)
    angles = Folded(drawn, ANGLE_SCALE, trained=settings.train_circuit)
    if source == "qnn":
        return CircuitFeatures(angles, settings).to(device)
    order = init.uniform(f"{name}.pairs", (shape[0] * shape[1], 2**n_qubits), 1.0).argsort(stable=True, dim=-1)
    pairs = order[:, : 2 * n_qubits].unflatten(-1, (2, -1))
    return GivensFeatures(angles, pairs, settings.readout).to(device)


def _with_fixed_matrix(
    settings: QAASettings, width: int, name: str, init: SeededInit, device: torch.device
) -> OrthogonalFeatures | LinearFeatures:
    is_linear = settings.feature_source == "linear"
    rows = count_features(settings, width) if is_linear else 2 ** circuits.amplitude_qubits(width)
    if not is_linear and rows > _WIDEST_ORTHOGONAL:
        raise ConfigError(
            f"feature_source='quadratic' would draw a matrix of {rows} x {width} for {name}, more than "
            f"{_WIDEST_ORTHOGONAL} rows; choose givens or linear"
        )
    if device.type == "meta":  # a plan: nothing is drawn
        matrix = torch.empty(rows, width, device=device)
    else:
        matrix = init.normal(f"{name}.{settings.feature_source}", (rows, width))
        matrix = (matrix if is_linear else _orthonormal(matrix)).to(device)
    return LinearFeatures(matrix) if is_linear else OrthogonalFeatures(matrix, settings.readout)


def count_features(settings: QAASettings, width: int) -> int:
    """The number of features of an input of this width: n, 2^n, or 0."""
    if settings.feature_source == "none":
        return 0
    n_qubits = circuits.amplitude_qubits(width)
    return n_qubits if settings.readout == "z" else 2**n_qubits


def normalized(x: Tensor) -> Tensor:
    """x / max(||x||, 1e-8), (..., d): 0 for x = 0, and finite gradients there."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)


def _read(p: Tensor, readout: str) -> Tensor:
    """Features (..., n) or (..., B) of p (..., B)."""
    if readout == "probs":
        return _of_probabilities(p)
    n_states = p.shape[-1]
    index = torch.arange(n_states, device=p.device)
    bits = index[:, None] >> torch.arange(n_states.bit_length() - 2, -1, -1, device=p.device) & 1  # (B, n)
    return p @ (1 - 2 * bits).to(p.dtype) * _z_scale(n_states)


def _z_scale(n_states: int) -> float:
    return math.sqrt((n_states + 2) / 2)


def _of_probabilities(p: Tensor) -> Tensor:
    n_states = p.shape[-1]
    return (p - p.sum(-1, keepdim=True) / n_states) * math.sqrt(n_states * (n_states + 2) / 2)


def _orthonormal(matrix: Tensor) -> Tensor:
    """Q of matrix = Q R with R's diagonal positive: uniform over orthonormal columns for a normal `matrix`."""
    q, r = torch.linalg.qr(matrix.double())
    return (q * r.diagonal().sign()).float()
