"""What every backend can do: run one circuit at a batch of angles, as one job."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qpeft.circuits import Ansatz

Numbers = NDArray[np.float64]


class Backend:
    """Runs circuits. One call of `run` is one job, whatever the size of its batch.

    A backend keeps what the user gave (a device, a sampler) and nothing of any model.
    """

    name: str
    """Shown to the user, for example "exact", "lightning.qubit", "AerSampler"."""

    has_exact: bool = False
    """Whether it gives probabilities without shots."""

    has_adjoint: bool = False
    """Whether `adjoint` works, without shots."""

    default_shots: int | None = None
    """Shots of the device that the user configured; they hold where none are asked for."""

    is_simulator: bool = False
    """Whether it costs nothing but time on this machine."""

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        """Probabilities (B, D) of the D = 2^N basis states, wire 0 the most significant bit.

        Args:
            ansatz: The circuit, started in `|0...0>`.
            angles: Radians, `(B, *ansatz.angle_shape)`.
            shots: Relative frequencies over so many shots for each of the B circuits; None: exact probabilities.
            seed: Of the counts, where the backend draws them itself. A device of the user's has its own.
        """
        raise NotImplementedError

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        """Gradient of sum_i weights_i p_i, `(*ansatz.angle_shape)`, by one adjoint pass; weights (D,)."""
        raise NotImplementedError(f"{self.name} has no adjoint gradients")

    def check(self, ansatz: Ansatz) -> None:
        """Raise ConfigError, before any work, if this circuit cannot run here (too few wires, a missing gate)."""
