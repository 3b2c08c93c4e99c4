"""QAA's features of an input: from a circuit whose initial state is the input, or from a classical
control.

With n qubits, B = 2^n and a = x / ||x||, padded with zeros to B, an orthogonal map turns a into
phi, and

    f_r = sqrt((B+2)/2) sum_j s_rj |phi_j|^2        n features, s_rj = +-1 by bit r of j

so that the features of a real circuit have variance 1 on isotropic inputs of width B. With readout
last_r, QCHFT's (18), the features are those of the last r bits without the factor, and |f| <= 1.
The map is

    qnn         the circuit with angles (L, blocks, n), trained or frozen
    givens      as many rotations of two coordinates: each of the n angles of a block rotates a pair of its own
    quadratic   a random matrix (B, d) with orthonormal columns

and "linear" is f = A a with a normal A (features, d) of the variance of a real circuit, which is
odd in x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.circuits import Ansatz, amplitude_expectations
from qpeft.circuits.amplitude import amplitude_qubits, embedded, z_signs
from qpeft.core.folded import Folded
from qpeft.core.generator import as_index
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qaa import ANGLE_SCALE, QAASettings


class Features(nn.Module):
    """f (..., features) of x (..., width); `init` draws the initial values by `name`.

    Raises ConfigError for more than 16 qubits, or fewer than n_read, and for blocks on pairs of a
    single qubit.
    """

    matrix: Tensor
    pairs: Tensor  # (angles / n, 2, n)

    def __init__(self, settings: QAASettings, width: int, name: str, init: SeededInit) -> None:
        super().__init__()
        self.source = settings.feature_source
        n = amplitude_qubits(width)
        self.n_qubits = n
        self.circuit = Ansatz(settings.ansatz, n, settings.n_layers)
        unit = math.sqrt((2**n + 2) / 2)  # of features with variance 1
        reads_all = settings.readout == "z"
        self.n_features = n if reads_all else settings.n_read
        self.scale = unit if reads_all else 1.0
        if self.n_features > n:
            raise ConfigError(
                f"n_read={settings.n_read} exceeds {n}, the number of qubits of the input of {name}"
            )
        if self.source == "linear":
            drawn = init.normal(f"{name}.linear", (self.n_features, width), self.scale / unit)
            self.register_buffer("matrix", drawn, persistent=False)
        elif self.source == "quadratic":
            drawn = init.orthonormal(f"{name}.quadratic", 2**n, width)
            self.register_buffer("matrix", drawn, persistent=False)
        else:
            shape = self.circuit.angle_shape
            drawn = init.uniform(f"{name}.angles", shape, math.pi)
            self.angles = Folded(drawn, ANGLE_SCALE, trained=settings.train_circuit)
            if self.source == "givens":
                n_rounds = -(-math.prod(shape) // n)
                drawn = init.uniform(f"{name}.pairs", (n_rounds, 2**n), 1.0)
                order = drawn.argsort(stable=True, dim=-1)  # a random permutation in each row
                pairs = order[:, : 2 * n].unflatten(-1, (2, -1))  # (rounds, 2, n)
                self.register_buffer("pairs", pairs.float(), persistent=False)  # an index buffer

    def forward(
        self, x: Tensor, measure: Callable[[Tensor, Any, Tensor], Tensor] | None = None
    ) -> Tensor:
        if measure is None and self.source == "qnn":
            z = amplitude_expectations(x, self.angles().to(x.dtype), self.circuit.name)
        else:
            a = embedded(x, self.n_qubits)  # (..., B)
            if measure is not None:
                squares = measure(a, self.circuit, self.angles().to(x.dtype))
            elif self.source == "givens":
                squares = self._rotated(a).square()
            else:
                phi = a[..., : x.shape[-1]] @ self.matrix.to(x.dtype).mT
                if self.source == "linear":
                    return phi
                squares = phi.square()
            z = squares @ z_signs(self.n_qubits, x.dtype, x.device)  # (..., n)
        return z[..., -self.n_features :] * self.scale

    def _rotated(self, a: Tensor) -> Tensor:
        """a (..., B) behind rounds of rotations; a round rotates up to n disjoint pairs at once."""
        flat: Any = self.angles().to(a.dtype).flatten()
        rounds = as_index(self.pairs).unbind(0)
        for angles, pairs in zip(flat.split(self.n_qubits), rounds, strict=True):
            i, j = pairs[:, : len(angles)]  # the last round has fewer
            u = a[..., i]  # (..., pairs)
            v = a[..., j]
            cos = angles.cos()
            sin = angles.sin()
            rotated = torch.cat([cos * u - sin * v, sin * u + cos * v], -1)
            a = a.index_copy(-1, torch.cat([i, j]), rotated)
        return a
