"""Whether the gradients of a circuit vanish as it grows: their variance over random angles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.diagnostics.finding import Measurement
from qpeft.diagnostics.haar import Floats
from qpeft.diagnostics.states import check_positive, circuit_states, generator, random_angles
from qpeft.errors import ConfigError

_VANISHING = -0.5  # slope of log2 variance per qubit; steeper slopes count as exponential (1/N would be flatter)
_AT_ONCE = 2**17  # amplitudes per pass; a gradient stores them for every layer


def _z(n_qubits: int, wire: int) -> Floats:
    bits = np.arange(2**n_qubits) >> (n_qubits - 1 - wire) & 1
    return 1.0 - 2.0 * bits


_WEIGHTS: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "z_first": lambda n, random: _z(n, 0),
    "z_last": lambda n, random: _z(n, n - 1),
    "p_0": lambda n, random: np.eye(1, 2**n)[0],
    "random": lambda n, random: random.standard_normal(2**n),
    "scaled": lambda n, random: math.sqrt(2**n) * random.choice([-1.0, 1.0], 2**n),
}
OBSERVABLES = tuple(_WEIGHTS)


@dataclass(frozen=True)
class GradientVariance(Measurement):
    """Variance of an observable's gradient over random angles; one row per depth, one column per width.

    `slopes` are those of the straight line fitted to log2 of the variance against the number of qubits, one per
    depth, and `slope_errors` their standard errors; None for a single width.
    """

    observable: str
    samples: int
    n_qubits: tuple[int, ...]
    n_layers: tuple[int, ...]
    variances: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...] = field(repr=False)  # standard errors of the variances
    slopes: tuple[float | None, ...]
    slope_errors: tuple[float | None, ...]

    @property
    def sentence(self) -> str:
        return "; ".join(self._of_depth(row) for row in range(len(self.n_layers))) + "."

    def vanishes(self, n_layers: int) -> bool | None:
        """Whether gradients vanish exponentially with width at that depth; None if the samples are inconclusive."""
        row = self.n_layers.index(n_layers)
        slope, error = self.slopes[row], self.slope_errors[row]
        if slope is None or error is None or abs(slope - _VANISHING) <= 2 * error:
            return None
        return slope < _VANISHING

    def _of_depth(self, row: int) -> str:
        slope, error, depth = self.slopes[row], self.slope_errors[row], f"At {layers(self.n_layers[row])}"
        vanishes = self.vanishes(self.n_layers[row])
        if slope is None or error is None:
            return f"{depth} the variance is {self.variances[row][0]:.2g}; one width shows no trend"
        trend = f"slope of log2 {slope:.2f} ± {error:.2f} per qubit"
        if vanishes:
            return f"{depth} gradients vanish: each qubit divides their variance by {2**-slope:.1f} ({trend})"
        if vanishes is False:
            size = math.sqrt(self.variances[row][-1])
            return (
                f"{depth} gradients do not vanish with width: {size:.2g} r.m.s. at {self.n_qubits[-1]} qubits ({trend})"
            )
        return f"{depth} the samples are inconclusive as to whether gradients vanish ({trend})"


def gradient_variance(
    n_qubits: Sequence[int],
    n_layers: Sequence[int],
    observable: str = "scaled",
    samples: int = 200,
    seed: int = 0,
    ansatz: str = "ry_ladder",
) -> GradientVariance:
    """Variance of d(observable)/d(angle) of a circuit, angles uniform on [-pi, pi), in the middle layer.

    The mean over the angles is 0, so the variance is the mean of squares: over the samples and over the angles of
    the middle layer, L // 2 of `ry_ladder`, counted from 0. Every observable is a weighted sum of the D = 2^N
    probabilities:

    - `z_first`, `z_last`: <Z> of the first or last wire
    - `p_0`: the probability of `|0...0>`
    - `random`: independent standard normal weights
    - `scaled`: the feature 2^N p_i: the mean over i of its squared slopes, estimated with random signs for each
      sample, because E (sum_i s_i x_i)^2 = sum_i x_i^2

    The error of a slope is the larger of two estimates: from the scatter of the samples and, for three or more widths,
    from the residuals of the fit.

    Args:
        n_qubits: Widths, ascending.
        n_layers: Depths.
        observable: One of the names above.
        samples: Circuits for each width and depth, at least 2.
        seed: Seed of angles and weights.
        ansatz: Name of the circuit.

    Raises:
        ConfigError: An unknown observable or ansatz, missing or non-positive sizes, unordered widths, or fewer than 2
            samples.
    """
    _check(n_qubits, n_layers, observable, samples)
    circuits = [[Ansatz(ansatz, width, depth) for width in n_qubits] for depth in n_layers]
    found = [[_squares(circuit, observable, samples, seed) for circuit in row] for row in circuits]
    variances = [[float(squares.mean()) for squares in row] for row in found]
    errors = [[float(squares.std(ddof=1) / math.sqrt(samples)) for squares in row] for row in found]
    lines = [_line(n_qubits, *row) for row in zip(variances, errors, strict=True)]
    return GradientVariance(
        observable=observable,
        samples=samples,
        n_qubits=tuple(n_qubits),
        n_layers=tuple(n_layers),
        variances=tuple(map(tuple, variances)),
        errors=tuple(map(tuple, errors)),
        slopes=tuple(slope for slope, _ in lines),
        slope_errors=tuple(error for _, error in lines),
    )


def _check(n_qubits: Sequence[int], n_layers: Sequence[int], observable: str, samples: int) -> None:
    if observable not in OBSERVABLES:
        raise ConfigError(f"unknown observable '{observable}'; choose one of {', '.join(OBSERVABLES)}")
    if not n_qubits or not n_layers:
        raise ConfigError("gradient_variance needs at least one width and one depth")
    for width in n_qubits:
        check_positive(n_qubits=width)
    for depth in n_layers:
        check_positive(n_layers=depth)
    if any(after <= before for before, after in pairwise(n_qubits)):
        raise ConfigError(f"n_qubits must be in ascending order, got {list(n_qubits)}")
    if samples < 2:
        raise ConfigError(f"a variance needs at least 2 samples, got {samples}")


def _squares(ansatz: Ansatz, observable: str, samples: int, seed: int) -> Floats:
    """Squared slope, averaged over the angles of the middle layer: one value per sample, (samples,)."""
    n_qubits = ansatz.n_qubits
    random = generator(seed, n_qubits, ansatz.n_layers)
    layers = list(ansatz.layers())
    slots = [gate.slot for gate in layers[len(layers) // 2] if gate.slot is not None]
    angles = random_angles(ansatz, samples, int(random.integers(2**63)))
    weights = torch.from_numpy(np.stack([_WEIGHTS[observable](n_qubits, random) for _ in range(samples)]))
    at_once = max(1, _AT_ONCE >> n_qubits)
    parts = zip(angles.split(at_once), weights.split(at_once), strict=True)
    gradients = torch.cat([_gradients(ansatz, *part) for part in parts])
    return torch.stack([gradients[:, *slot] for slot in slots], dim=1).square().mean(1).numpy()


def _gradients(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Tensor:
    """Gradients `(S, *ansatz.angle_shape)` of weights @ p; angles have the same shape, weights (S, D)."""
    leaf = angles.clone().requires_grad_()
    with torch.enable_grad():
        psi = circuit_states(ansatz, leaf)
        p = psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()
        (found,) = torch.autograd.grad(p, leaf, weights)
    return found


def _line(n_qubits: Sequence[int], variances: list[float], errors: list[float]) -> tuple[float | None, float | None]:
    """Least-squares slope of log2 variance against the number of qubits, and its standard error."""
    if len(n_qubits) < 2 or min(variances) <= 0:
        return None, None
    x = np.array(n_qubits) - np.mean(n_qubits)
    y = np.log2(variances)
    slope = float(x @ y / (x @ x))
    scatter = np.array(errors) / np.array(variances) / math.log(2)
    sampled = math.sqrt(x**2 @ scatter**2) / (x @ x)
    off = y - y.mean() - slope * x
    fitted = math.sqrt(off @ off / (len(x) - 2) / (x @ x)) if len(x) > 2 else 0.0
    return slope, float(max(sampled, fitted))


def layers(n: int) -> str:
    return f"{n} layer" if n == 1 else f"{n} layers"
