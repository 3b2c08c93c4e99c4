"""States and probabilities of many circuits at given or random angles, and the random streams behind them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.circuits.exact import circuit_states
from qpeft.errors import ConfigError


def field_of(ansatz: Ansatz) -> str:
    """ "real" or "complex": the amplitudes of the states of the `ansatz`."""
    return "complex" if any(gate.name in ("rx", "rz") for gate in ansatz.gates()) else "real"


def random_states(ansatz: Ansatz, samples: int, seed: int = 0) -> Tensor:
    """`circuit_states` (samples, 2**N), float64, of the `ansatz` at angles uniform on [-pi, pi), drawn from `seed`.

    Raises ConfigError as `circuit_states`.
    """
    return circuit_states(ansatz, random_angles(ansatz, samples, seed))


def random_probabilities(ansatz: Ansatz, samples: int, seed: int = 0) -> Tensor:
    """Probabilities (samples, 2**N), float64, of the `ansatz` at angles uniform on [-pi, pi), drawn from `seed`.

    Of `two_design` they are the squares of the first column. Raises ConfigError as `circuit_states`.
    """
    return random_states(ansatz, samples, seed).abs().square()


def random_angles(ansatz: Ansatz, samples: int, seed: int = 0) -> Tensor:
    """Angles `(samples, *ansatz.angle_shape)`, float64, uniform on [-pi, pi), drawn from `seed`.

    QPA's initial angles have this distribution.

    Raises ConfigError as `circuit_states`.
    """
    check_positive(samples=samples)
    return torch.from_numpy(generator(seed).uniform(-math.pi, math.pi, (samples, *ansatz.angle_shape)))


def generator(*seed: int) -> np.random.Generator:
    """An independent random stream for each tuple of seeds, each at least 0."""
    if min(seed) < 0:
        raise ConfigError(f"seed must be 0 or more, got {min(seed)}")
    return np.random.Generator(np.random.Philox(seed))


def check_positive(**numbers: int) -> None:
    """Raises ConfigError unless all are integers of at least 1."""
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {number}")
