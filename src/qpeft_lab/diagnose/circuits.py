"""Measurements of circuits: are they random, redundant, trainable, expressive, entangled?

Random states are uniform on the sphere of unit vectors (Haar-random). Their D probabilities follow
the Dirichlet law of parameters a, with a = 1/2 for real and a = 1 for complex states; one
probability, and the fidelity |<x|y>|^2 of two states, follows Beta(a, a (D - 1)). Circuits of RY,
CNOT and CZ, such as QPA's and Quantum-PEFT's, have real states.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, entropy
from torch import Tensor

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft.circuits.simulate import circuit_states
from qpeft.errors import ConfigError

Floats = NDArray[np.float64]
_PARAMETER = {"real": 0.5, "complex": 1.0}
# quantiles at which distances are computed: more would add less than 1/4096
_SHARES = np.arange(1, 4096) / 4096
_RESAMPLES = 199  # simulated data sets: the smallest p-value is 1/200
# probabilities that are tested at most, so that the test takes a fraction of a second
_TESTED = 2**15
_SHOWN = 0.01  # p-values below show a difference
_CLOSE = 0.05  # distances above are large
_REDUNDANT = 1e-8  # a singular value below this share of the largest is zero
_ROUNDING = 1e-13  # rounding error in float64 of a derivative that is 0
# slope of log2 variance per qubit; steeper slopes count as exponential (1/N would be flatter)
_VANISHING = -0.5
_AT_ONCE = 2**17  # amplitudes per pass; a gradient stores them for every layer


@dataclass(frozen=True)
class Measurement:
    """What a measurement shows, and its values with their references, by name."""

    verdict: str
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def sentence(self) -> str:
        """The verdict, and in brackets the values that are numbers."""
        numbers = {
            n: v
            for n, v in self.values.items()
            if isinstance(v, int | float) and not isinstance(v, bool)
        }
        shown = (
            f"{n.replace('_', ' ')} {v:{',' if isinstance(v, int) else '.3g'}}"
            for n, v in numbers.items()
        )
        return f"{self.verdict} ({', '.join(shown)})."


def field_of(ansatz: Ansatz) -> str:
    """ "real" or "complex": the amplitudes of the states of the `ansatz`."""
    return "complex" if any(gate.name in ("rx", "rz") for gate in ansatz.gates()) else "real"


def random_angles(ansatz: Ansatz, samples: int, seed: int = 0) -> Tensor:
    """Angles `(samples, *ansatz.angle_shape)` in radians, float64, uniform on [-pi, pi) as QPA's
    initial ones, from `seed`.

    Raises ValueError for a negative number of `samples`.
    """
    return torch.from_numpy(
        _stream(seed).uniform(-math.pi, math.pi, (samples, *ansatz.angle_shape))
    )


def random_states(ansatz: Ansatz, samples: int, seed: int = 0) -> Tensor:
    """States (samples, 2**N) of the `ansatz` at random angles, drawn from `seed`.

    float64 for an ansatz with real amplitudes, otherwise complex128. Raises as `random_angles`.
    """
    return circuit_states(ansatz, random_angles(ansatz, samples, seed))


def porter_thomas(probabilities: Tensor | Floats, field: str = "real") -> Measurement:
    """Whether the probabilities of states are those of random states.

    The D probabilities of a state sum to 1, so they are not independent, and the usual p-value of a
    Kolmogorov-Smirnov test would be wrong. Here it is the rank of the distance among those of 199
    simulated sets of as many random states; of more than 32,768 probabilities some states are
    tested, chosen at random.

    Args:
        probabilities: (S, D) of S states, or (D,) of one state; each state's probabilities sum to
            1. Of any real dtype, computed in float64. Frequencies over shots are not probabilities:
            they follow the distribution of counts.
        field: "real" for circuits of RY, CNOT and CZ, such as QPA's and Quantum-PEFT's; "complex"
            for all others.

    Returns:
        `distance`, of Kolmogorov and Smirnov, of all probabilities to the law, and its `p_value`;
        `inverse_participation`, the mean of D sum p^2, the inverse participation ratio, and
        `expected_participation`, that of random states.

    Raises ConfigError for values that are not probabilities.
    """
    p = np.atleast_2d(np.asarray(torch.as_tensor(probabilities).detach().cpu()))
    if p.ndim != 2 or len(p) == 0 or p.shape[1] < 2 or np.iscomplexobj(p):
        raise ConfigError(
            f"probabilities must be real, of shape (states, D) or (D,), got {p.dtype}{p.shape}"
        )
    p = p.astype(np.float64)
    if not np.isfinite(p).all() or p.min() < 0 or abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ConfigError(
            "these are not probabilities: each must be 0 or more, and those of each state must sum"
            " to 1"
        )
    size = p.shape[1]
    a = _PARAMETER[field]
    quantiles = _haar_law(field, size).ppf(_SHARES)
    random = _stream(zlib.crc32(p.tobytes()))  # deterministic for the same data
    n = max(1, min(len(p), _TESTED // size))
    tested = _distance(quantiles, p if n == len(p) else random.choice(p, n, replace=False))
    simulated = [_distance(quantiles, random.dirichlet([a] * size, n)) for _ in range(_RESAMPLES)]
    p_value = (1 + sum(distance >= tested for distance in simulated)) / (_RESAMPLES + 1)
    distance = _distance(quantiles, p)
    ipr = float(size * (p**2).sum(axis=1).mean())
    values = {
        "field": field,
        "distance": distance,
        "p_value": p_value,
        "inverse_participation": ipr,
    }
    values["expected_participation"] = expected = size * (a + 1) / (a * size + 1)
    verdict = f"The probabilities are like those of random {field} states"
    if p_value < _SHOWN:
        how = "are close to" if distance < _CLOSE else "differ from"
        uneven = "more uneven" if ipr > expected else "more even"
        verdict = f"The probabilities {how} those of random {field} states: they are {uneven}"
    return Measurement(verdict, values)


def redundancy(ansatz: Ansatz, angles: Tensor) -> Measurement:
    """How many of the angles are redundant at `angles`, radians, of shape `ansatz.angle_shape`.

    `independent` is the rank of the Jacobian (D, P) of the D probabilities with respect to the P
    `angles`, at most `possible`, the smaller of P and D - 1. It is exact, in float64. If each angle
    turns one gate, its columns come from the parameter shift, dp/dtheta_k = (p(theta + pi/2 e_k) -
    p(theta - pi/2 e_k)) / 2, and cost 2 P states of 2^N amplitudes; if gates share or scale angles,
    its rows come from autograd, with 2^N backward passes. Singular values above 1e-8 times the
    largest count. At generic angles of `ry_ladder` the rank is min(L N, 2^N - 1). `redundant` names
    gates whose angles could be fixed without losing a direction; another choice may do as well.

    Raises ConfigError for angles of another shape, or not finite.
    """
    if tuple(angles.shape) != ansatz.angle_shape or not torch.isfinite(angles).all():
        raise ConfigError(
            f"angles must be finite, of shape {ansatz.angle_shape}, got {tuple(angles.shape)}"
        )
    n_angles = ansatz.n_angles
    jacobian = _jacobian(ansatz, angles.detach().cpu().double())  # (P, D)
    singular = torch.linalg.svdvals(jacobian)
    threshold = max(_ROUNDING, _REDUNDANT * singular.max().item())
    rank = int((singular > threshold).sum())
    possible = min(n_angles, 2**ansatz.n_qubits - 1)
    redundant: list[str] = []
    verdict = "No angle is redundant"
    if rank < n_angles:
        redundant = [_gate_of(ansatz, index) for index in _dependent(jacobian, n_angles - rank)]
        verdict = f"{len(redundant)} of the angles are redundant, such as {named(redundant)}"
    values = {"angles": n_angles, "independent": rank, "possible": possible}
    return Measurement(verdict, {**values, "redundant": redundant})


def _dependent(jacobian: Tensor, n_dependent: int) -> list[int]:
    """The rows (P, D) of which combinations of the others make the rest: `n_dependent` indices.

    By Gram-Schmidt in the order of the circuit, the rows whose part that earlier rows do not span
    is smallest: fixing these angles loses no direction.
    """
    left = jacobian.clone()
    new_parts = []  # of each row, the norm of what earlier rows do not span
    for index in range(len(left)):
        norm = left[index].norm().item()
        new_parts.append(norm)
        if norm > 0:
            direction = left[index] / norm
            left[index + 1 :] -= torch.outer(left[index + 1 :] @ direction, direction)
    in_order = sorted(range(len(new_parts)), key=new_parts.__getitem__)
    return sorted(in_order[:n_dependent])


def _gate_of(ansatz: Ansatz, index: int) -> str:
    """An angle by its number, and the first gate that it turns, in words."""
    slot = tuple(int(part) for part in np.unravel_index(index, ansatz.angle_shape))
    gate = next((gate for gate in ansatz.gates() if gate.slot == slot), None)
    turned = "no gate" if gate is None else f"{gate.name} on wire {gate.wires[0]}"
    return f"angles{list(slot)} ({turned})"


def equal_features(ansatz: Ansatz, seed: int = 0) -> Measurement:
    """Which of the D = 2^N probabilities of the `ansatz` are equal at all angles, as symmetries make
    them.

    Compared at three sets of random angles from `seed`, in float64. Returns `features`, D;
    `distinct`, how many differ; and `groups`, the basis states, such as "011", whose probabilities
    are equal, or 0. Raises ConfigError for an ansatz that is not registered.
    """
    features = exact_probabilities(ansatz, random_angles(ansatz, 3, seed)).T  # (D, 3)
    order = features[:, 0].argsort()
    steps = features[order].diff(dim=0).abs().amax(1)  # (D - 1,): to the next larger one
    is_new = [True, *(steps > _ROUNDING).tolist()]
    groups: list[list[str]] = []
    for index, starts_group in zip(order.tolist(), is_new, strict=True):
        if starts_group:
            groups.append([])
        groups[-1].append(f"{index:0{ansatz.n_qubits}b}")
    equal = sorted(sorted(states) for states in groups if len(states) > 1)
    verdict = "All features differ"
    if equal:
        verdict = f"Some features are equal at all angles, such as those of {named(equal[0])}"
    counts = {"features": len(features), "distinct": len(groups)}
    return Measurement(verdict, {**counts, "groups": equal})


def named(names: Sequence[str], most: int = 3) -> str:
    """The first few, in words."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _jacobian(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """The derivatives (P, D) of the D probabilities by the P angles, float64."""
    n_angles = ansatz.n_angles
    if not ansatz.has_shift_rule:

        def probabilities(flat: Tensor) -> Tensor:
            return exact_probabilities(ansatz, flat.view(ansatz.angle_shape))

        rows: Any = torch.autograd.functional.jacobian(probabilities, angles.flatten())  # (D, P)
        return rows.T
    shifts = math.pi / 2 * torch.eye(n_angles, dtype=angles.dtype)
    shifts = shifts.view(n_angles, *ansatz.angle_shape)
    after, before = (exact_probabilities(ansatz, angles + sign * shifts) for sign in (1, -1))
    return (after - before) / 2


def gradient_variance(
    n_qubits: Sequence[int],
    n_layers: int,
    samples: int = 200,
    seed: int = 0,
    ansatz: str = "ry_ladder",
) -> Measurement:
    """Whether gradients vanish with more qubits: the variance of d(2^N p_i)/d(angle), angles uniform
    on [-pi, pi).

    The mean over the angles is 0, so the variance is the mean of squares: over the samples, over
    the angles of the middle layer, L // 2 of `ry_ladder`, counted from 0, and over i, estimated
    with random signs s of each sample, because E (sum_i s_i x_i)^2 = sum_i x_i^2.

    Args:
        n_qubits: Different widths.
        n_layers: Depth.
        samples: Circuits for each width, at least 2.
        seed: Seed of angles and signs.
        ansatz: Name of the circuit.

    Returns:
        `variances`, by width; `slope`, of the straight line fitted to their log2 against the number
        of qubits, with its standard error `slope_error` from the samples, both None for one width;
        and `vanishes`: whether the slope is that of an exponential decrease, None if the samples
        are inconclusive.

    Raises ConfigError for fewer than two samples.
    """
    if samples < 2:
        raise ConfigError(f"samples must be at least 2, got {samples}")
    squares = [
        _squared_slopes(Ansatz(ansatz, width, n_layers), samples, seed) for width in n_qubits
    ]
    variances = [float(of_width.mean()) for of_width in squares]
    slope = error = vanishes = None
    if len(n_qubits) > 1 and min(variances) > 0:
        x = np.array(n_qubits) - np.mean(n_qubits)
        scatter = np.array(
            [of_width.std(ddof=1) / of_width.mean() for of_width in squares]
        ) / math.log(2)
        slope = float(x @ np.log2(variances) / (x @ x))
        error = math.sqrt(x**2 @ scatter**2 / samples) / float(x @ x)
        vanishes = slope < _VANISHING if abs(slope - _VANISHING) > 2 * error else None
    values = {"layers": n_layers, "n_qubits": list(n_qubits), "variances": variances}
    values |= {"slope": slope, "slope_error": error, "vanishes": vanishes}
    does = "vanish" if vanishes else "do not vanish"
    if vanishes is None:
        does = "perhaps vanish"
    plural = "" if n_layers == 1 else "s"
    verdict = f"With {n_layers} layer{plural} gradients {does} with more qubits"
    return Measurement(
        f"{verdict}: their root mean square is {math.sqrt(variances[-1]):.2g} at {n_qubits[-1]}"
        " qubits",
        values,
    )


def _squared_slopes(ansatz: Ansatz, samples: int, seed: int) -> Floats:
    """Averaged over the angles of the middle layer: one value per sample, (samples,)."""
    random = _stream(seed, ansatz.n_qubits, ansatz.n_layers)
    size = 2**ansatz.n_qubits
    # by layer, each angle once, also if several gates share it
    slots_of_layers = [
        dict.fromkeys(gate.slot for gate in layer if gate.slot is not None)
        for layer in ansatz.layers()
    ]
    slots = list(next(filter(None, slots_of_layers[len(slots_of_layers) // 2 :]), {}))
    if not slots:
        raise ConfigError(f"the ansatz {ansatz.name} has no angles in its second half")
    angles = random_angles(ansatz, samples, int(random.integers(2**63)))
    weights = torch.from_numpy(math.sqrt(size) * random.choice([-1.0, 1.0], (samples, size)))
    at_once = max(1, _AT_ONCE // size)
    gradients = []
    for leaf, weight in zip(angles.split(at_once), weights.split(at_once), strict=True):
        with torch.enable_grad():
            p = exact_probabilities(ansatz, leaf.requires_grad_())
            gradients += torch.autograd.grad(p, leaf, weight)
    of_samples = torch.cat(gradients)  # (samples, *ansatz.angle_shape)
    slopes = torch.stack([of_samples[:, *slot] for slot in slots], dim=1)  # (samples, slots)
    return slopes.square().mean(1).numpy()


def expressibility(
    ansatz: Ansatz, samples: int = 2000, seed: int = 0, n_bins: int = 50
) -> Measurement:
    """Whether the `ansatz` reaches all states evenly: fidelities F = `|<a|b>|^2` of states at
    angles drawn from `seed`.

    `samples` independent pairs are compared with random states, in `n_bins` bins of equal
    probability. Returns their `divergence`, of Kullback and Leibler, in nats, from random states;
    `expected`, its mean for random states; and `limit`, below which it is in 95 of 100 cases.
    Raises ConfigError for fewer samples than bins.
    """
    if samples < n_bins:
        raise ConfigError(f"samples must be at least n_bins={n_bins}, got {samples}")
    angles = random_angles(ansatz, 2 * samples, seed).split(2 * max(1, _AT_ONCE >> ansatz.n_qubits))
    pairs = (circuit_states(ansatz, part).unflatten(0, (-1, 2)) for part in angles)
    fidelities = torch.cat(
        [(pair[:, 0].conj() * pair[:, 1]).sum(1).abs().square().clamp(max=1) for pair in pairs]
    )
    return of_fidelities(fidelities.numpy(), ansatz.n_qubits, n_bins, field_of(ansatz))


def of_fidelities(
    fidelities: Floats, n_qubits: int, n_bins: int = 50, field: str = "real"
) -> Measurement:
    """As `expressibility`, from the fidelities (pairs,) of pairs of states of N qubits.

    Equal bins of F on [0, 1] would put all fidelities of a wide circuit into the first bin.
    """
    n_pairs = len(fidelities)
    bins = np.minimum(
        (n_bins * _haar_law(field, 2**n_qubits).cdf(fidelities)).astype(int), n_bins - 1
    )
    divergence = float(entropy(np.bincount(bins, minlength=n_bins), np.ones(n_bins)))
    # pairs in a bin: binomial, where the pairs follow the law
    counts = np.arange(1, n_pairs + 1)
    terms = counts / n_pairs * np.log(counts / n_pairs * n_bins)
    expected = float(n_bins * (binom.pmf(counts, n_pairs, 1 / n_bins) * terms).sum())
    limit = float(chi2.isf(0.05, n_bins - 1) / (2 * n_pairs))
    values = {
        "field": field,
        "pairs": n_pairs,
        "divergence": divergence,
        "expected": expected,
        "limit": limit,
    }
    how = (
        "overlap like random states"
        if divergence <= limit
        else f"do not cover all {field} states evenly"
    )
    return Measurement(f"States at random angles {how}", values)


def meyer_wallach(states: Tensor) -> Measurement:
    """How entangled normalised `states` (S, 2^N) are, S at least 2; of any real or complex dtype,
    computed in float64 or complex128 on the CPU.

    `mean` is that of Meyer and Wallach's Q = 2 (1 - 1/N sum_i Tr rho_i^2), rho_i the reduced state
    of qubit i, from 0 (a product state) to 1, and `error` its standard error. `expected` is the
    mean of random states with amplitudes of the same field: (D-2)/(D+2) of real ones with D = 2^N,
    (D-2)/(D+1) of complex ones.

    Raises ConfigError for states of another shape or norm.
    """
    size = states.shape[-1] if states.ndim == 2 else 0
    if len(states) < 2 or size < 2 or size & (size - 1):
        raise ConfigError(
            f"states must have shape (2 or more states, 2**n_qubits), got {tuple(states.shape)}"
        )
    psi = states.detach().cpu().to(torch.complex128 if states.is_complex() else torch.float64)
    if not ((psi.norm(dim=1) - 1).abs() < 1e-3).all():
        raise ConfigError("states must have norm 1; give amplitudes, not probabilities")
    n_qubits = (size - 1).bit_length()
    purities = []  # Tr rho^2 of each qubit, (S,)
    for wire in range(n_qubits):
        parts = psi.view(len(psi), 2**wire, 2, -1)
        purities.append(
            torch.einsum("sabc,sadc->sbd", parts, parts.conj()).abs().square().sum((1, 2))
        )
    q = 2 * (1 - torch.stack(purities).mean(0))
    field = "complex" if psi.is_complex() else "real"
    mean = q.mean().item()
    error = q.std().item() / math.sqrt(len(q))
    expected = (size - 2) / (size + 1 / _PARAMETER[field])
    values = {
        "field": field,
        "qubits": n_qubits,
        "mean": mean,
        "error": error,
        "expected": expected,
    }
    how = "more than" if mean > expected else "less than"
    if abs(mean - expected) <= 2 * error:
        how = "as"
    return Measurement(f"The qubits are entangled {how} in random {field} states", values)


def _haar_law(field: str, size: int) -> Any:
    """The distribution, of scipy, of one of `size` probabilities of a random state, and of the
    fidelity of two.
    """
    return beta(_PARAMETER[field], _PARAMETER[field] * (size - 1))


def _distance(quantiles: Floats, p: Floats) -> float:
    shares = np.searchsorted(np.sort(p, axis=None), quantiles, side="right") / p.size
    return float(abs(shares - _SHARES).max())


def _stream(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))
