"""Rules for the gradient of a function of a circuit's probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qpeft.backends.backend import Numbers
from qpeft.backends.jobs import Jobs
from qpeft.circuits import Ansatz

_SPSA_DIRECTIONS = 10
_SPSA_STEP = 0.2  # radians: with smaller steps shot noise dominates, with larger ones the bias


def parameter_shift(jobs: Jobs, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
    """dL/dtheta_k = 1/2 sum_i w_i (p_i(theta + pi/2 e_k) - p_i(theta - pi/2 e_k)), all in one job of 2P circuits.

    Exact for exact probabilities, unbiased for frequencies.
    """
    shifts = math.pi / 2 * np.eye(angles.size).reshape(-1, *angles.shape)
    found = jobs.run(ansatz, np.concatenate([angles + shifts, angles - shifts]), "parameter-shift") @ weights
    plus, minus = np.split(found, 2)
    return (0.5 * (plus - minus)).reshape(angles.shape)


def spsa(jobs: Jobs, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
    """Simultaneous perturbation: the mean over random directions D of signs, with 2 circuits each:

        g = D <w, p(theta + c D) - p(theta - c D)> / (2c)

    The number of circuits does not depend on the number of angles; the noise of the estimate does.
    """
    random = np.random.Generator(np.random.Philox(jobs.seed_of(angles)))
    directions = random.choice([-1.0, 1.0], size=(_SPSA_DIRECTIONS, *angles.shape))
    moved = _SPSA_STEP * directions
    found = jobs.run(ansatz, np.concatenate([angles + moved, angles - moved]), "spsa") @ weights
    plus, minus = np.split(found, 2)
    return np.tensordot((plus - minus) / (2 * _SPSA_STEP), directions, axes=1) / _SPSA_DIRECTIONS


Rule = Callable[[Jobs, Ansatz, Numbers, Numbers], Numbers]
RULES: dict[str, Rule] = {"adjoint": Jobs.adjoint, "parameter-shift": parameter_shift, "spsa": spsa}


def count_circuits(rule: str, n_angles: int) -> int:
    """Circuits of one gradient, in addition to the one for the value."""
    return {"adjoint": 1, "parameter-shift": 2 * n_angles, "spsa": 2 * _SPSA_DIRECTIONS}[rule]
