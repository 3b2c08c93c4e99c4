"""QAA's features of an input: from a circuit whose initial state is the input, or from a classical control.

With n qubits, B = 2^n and a = x / ||x||, padded with zeros to B, an orthogonal map turns a into phi, and

    f_r = sqrt((B+2)/2) sum_j s_rj |phi_j|^2        n features, s_rj = +-1 by bit r of j

so that the features of a real circuit have variance 1 on isotropic inputs of width B. The map is

    qnn         the circuit with angles (L, blocks, n), trained or frozen
    givens      as many rotations of two coordinates: each of the n angles of a block rotates a pair of its own
    quadratic   a random matrix (B, d) with orthonormal columns

and "linear" is f = A a with a standard normal A (n, d), which is odd in x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.circuits import Ansatz, amplitude_expectations
from qpeft.circuits.amplitude import amplitude_qubits
from qpeft.core.folded import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.qaa import ANGLE_SCALE, QAASettings


class Features(nn.Module):
    """f (..., n) of x (..., width); `init` draws the initial values by `name`.

    Raises ConfigError for more than 16 qubits.
    """

    matrix: Tensor
    pairs: Tensor  # (L * blocks, 2, n)

    def __init__(self, settings: QAASettings, width: int, name: str, init: SeededInit) -> None:
        super().__init__()
        self.source, self.ansatz = settings.feature_source, settings.ansatz
        self.n_qubits = n = amplitude_qubits(width)
        if self.source in ("quadratic", "linear"):
            rows = n if self.source == "linear" else 2**n
            matrix = init.normal(f"{name}.{self.source}", (rows, width))
            if self.source == "quadratic":  # with R's diagonal positive: uniform over orthonormal columns
                q, r = torch.linalg.qr(matrix.double())
                matrix = (q * r.diagonal().sign()).float()
            self.register_buffer("matrix", matrix, persistent=False)
        else:
            shape = Ansatz(settings.ansatz, n, settings.n_layers).angle_shape
            drawn = init.uniform(f"{name}.angles", shape, math.pi)
            self.angles = Folded(drawn, ANGLE_SCALE, trained=settings.train_circuit)
            if self.source == "givens":
                order = init.uniform(f"{name}.pairs", (shape[0] * shape[1], 2**n), 1.0).argsort(stable=True, dim=-1)
                self.register_buffer("pairs", order[:, : 2 * n].unflatten(-1, (2, -1)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n_states = 2**self.n_qubits
        if self.source == "qnn":
            z = amplitude_expectations(x, self.angles().to(x.dtype), self.ansatz)
        else:
            a = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-8)  # finite gradients at 0
            phi = self._rotated(a) if self.source == "givens" else a @ self.matrix.to(x.dtype).mT
            if self.source == "linear":
                return phi
            wires = torch.arange(self.n_qubits - 1, -1, -1, device=x.device)
            bits = torch.arange(n_states, device=x.device)[:, None] >> wires & 1  # (B, n)
            z = phi.square() @ (1 - 2 * bits).to(x.dtype)
        return z * math.sqrt((n_states + 2) / 2)

    def _rotated(self, a: Tensor) -> Tensor:
        angles: Any = self.angles().to(a.dtype).flatten(0, 1)  # (L * blocks, n)
        a = nn.functional.pad(a, (0, 2**self.n_qubits - a.shape[-1]))
        for angle, (i, j) in zip(angles, self.pairs.unbind(0), strict=True):
            c, s, first, second = angle.cos(), angle.sin(), a[..., i], a[..., j]
            a = a.index_copy(-1, torch.cat([i, j]), torch.cat([c * first - s * second, s * first + c * second], -1))
        return a
