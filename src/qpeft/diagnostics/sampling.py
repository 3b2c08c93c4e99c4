"""Seeds and sizes of random samples."""

from __future__ import annotations

import numpy as np

from qpeft.errors import ConfigError


def generator(*seed: int) -> np.random.Generator:
    """A stream of random numbers for each tuple of seeds, each at least 0."""
    if min(seed) < 0:
        raise ConfigError(f"seed must be 0 or more, got {min(seed)}")
    return np.random.Generator(np.random.Philox(seed))


def check_positive(**numbers: int) -> None:
    """Raises ConfigError unless all are integers of at least 1."""
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {number}")
