"""How many of a circuit's angles are redundant: the rank of the Jacobian of its probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.compare.measurements.ranks import numerical_rank
from qpeft.diagnostics.finding import Measurement, floats
from qpeft.diagnostics.states import circuit_states
from qpeft.errors import ConfigError

_ROUNDING = 1e-13  # rounding error in float64 of a derivative that is 0


@dataclass(frozen=True)
class Redundancy(Measurement):
    """Rank of the Jacobian (D, P) of the D probabilities with respect to the P angles, at one set of angles.

    It is at most `limit`, the smaller of `n_angles` = P and `n_free` = D - 1, the number of free probabilities.
    """

    n_qubits: int
    n_angles: int
    n_free: int
    rank: int
    singular_values: tuple[float, ...] = field(repr=False)  # descending, min(P, D) of them

    @property
    def limit(self) -> int:
        """The highest possible rank."""
        return min(self.n_angles, self.n_free)

    @property
    def sentence(self) -> str:
        if self.rank < self.limit:
            return (
                f"At these angles the circuit reaches only {self.rank} directions of the probabilities, where "
                f"{self.limit} are possible: some of the angles are redundant here."
            )
        if self.n_angles > self.n_free:
            spare = self.n_angles - self.rank
            return (
                f"{spare} of the {self.n_angles} angles are redundant: only {self.n_free} probabilities are free, so a "
                "free vector would need fewer parameters than the circuit."
            )
        return (
            f"No angle is redundant: the {self.n_angles} angles reach {self.rank} of the {self.n_free} directions in "
            "which the probabilities could change."
        )


def redundancy(ansatz: Ansatz, angles: Tensor, tolerance: float = 1e-8) -> Redundancy:
    """Rank of the Jacobian of the probabilities at `angles`, radians, shape `ansatz.angle_shape`.

    Its columns are exact, by parameter shift: dp/dtheta_k = (p(theta + pi/2 e_k) - p(theta - pi/2 e_k)) / 2, in
    float64. Singular values above `tolerance` times the largest count. At generic angles of `ry_ladder` the rank is
    min(L N, 2^N - 1). Cost: 2 P states of 2^N amplitudes.

    Raises:
        ConfigError: Angles of another shape or not finite, or a tolerance outside (0, 1).
    """
    if tuple(angles.shape) != ansatz.angle_shape:
        raise ConfigError(f"angles must have shape {ansatz.angle_shape}, got {tuple(angles.shape)}")
    if not torch.isfinite(angles).all():
        raise ConfigError("circuit angles contain NaN or Inf")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must lie between 0 and 1, got {tolerance}")
    values = torch.linalg.svdvals(_jacobian(ansatz, angles.detach().double().cpu()))
    values = torch.where(values > _ROUNDING, values, 0.0)
    return Redundancy(
        n_qubits=ansatz.n_qubits,
        n_angles=ansatz.n_angles,
        n_free=2**ansatz.n_qubits - 1,
        rank=numerical_rank(values, tolerance),
        singular_values=floats(values),
    )


def _jacobian(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """The transposed Jacobian (P, D), which has the same singular values."""
    shifts = math.pi / 2 * torch.eye(ansatz.n_angles, dtype=angles.dtype).view(-1, *ansatz.angle_shape)
    after, before = (circuit_states(ansatz, angles + step * shifts).abs().square() for step in (1, -1))
    return (after - before) / 2
