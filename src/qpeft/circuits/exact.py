"""Exact probabilities and states of any ansatz, by its own fast simulation or in stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz, check_circuit, fast_probabilities
from qpeft.circuits.ladder import ladder_states, probabilities
from qpeft.circuits.numerics import full_precision, has_nonfinite
from qpeft.circuits.staged import count_stages, staged_states
from qpeft.circuits.two_design import two_design_columns
from qpeft.errors import ConfigError

_AT_ONCE = 2**20  # amplitudes of a batch
_SECONDS = 1.2e-7  # per amplitude and stage, forward and backward on one core (measured at 14 to 18 qubits)


def seconds_in_stages(ansatz: Ansatz) -> float:
    """Estimated seconds of one evaluation with its gradient on one CPU core; 0 for an ansatz with a fast simulation.

    Raises ConfigError for a gate that is not valid.
    """
    check_circuit(ansatz)
    return 0.0 if _is_fast(ansatz) else _SECONDS * count_stages(ansatz) * 2**ansatz.n_qubits


def exact_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states of any ansatz started in `|0...0>`; wire 0 is the most significant bit.

    `angles` have shape `ansatz.angle_shape`, float32 or float64, radians; the result has their dtype and device. The
    simulation is the ansatz' own fast one, if it has one; otherwise all rotations between two-qubit gates are one step.
    Differentiable once.

    Raises ConfigError for angles of another shape or dtype, on the CPU for angles that are not finite, and for an
    ansatz of a user whose gates or fast simulation are not valid.
    """
    if angles.shape != ansatz.angle_shape or angles.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"{ansatz.name} with {ansatz.n_qubits} qubits and {ansatz.n_layers} layers needs float32 or float64 angles "
            f"of shape {ansatz.angle_shape}, got {angles.dtype} of shape {tuple(angles.shape)}"
        )
    if ansatz.name == "ry_ladder":
        return probabilities(angles)
    if has_nonfinite(angles):
        raise ConfigError(f"circuit angles of {ansatz.name} contain NaN or Inf")
    return _run(angles, ansatz)


def batch_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """`exact_probabilities` (S, 2**N) at each of the angles `(S, *ansatz.angle_shape)`, far faster than one by one.

    Raises ConfigError as `exact_probabilities`.
    """
    if fast_probabilities(ansatz) is not None or len(angles) == 1:
        return torch.stack([exact_probabilities(ansatz, each) for each in angles])
    if has_nonfinite(angles):
        raise ConfigError(f"circuit angles of {ansatz.name} contain NaN or Inf")
    parts = angles.split(max(1, _AT_ONCE >> ansatz.n_qubits))
    return torch.cat([(psi * psi.conj()).real for psi in (circuit_states(ansatz, part) for part in parts)])


def circuit_states(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Final states (S, 2**N) from `|0...0>` at the angles `(S, *ansatz.angle_shape)`, in their dtype.

    The amplitudes are complex for circuits with RX or RZ. Raises ConfigError for angles of another shape.
    """
    if angles.ndim == 0 or angles.shape[1:] != ansatz.angle_shape:
        wanted = ", ".join(map(str, ansatz.angle_shape))
        raise ConfigError(f"angles must have shape (samples, {wanted}), got {tuple(angles.shape)}")
    if ansatz.name == "ry_ladder":
        return ladder_states(angles)
    if ansatz.name == "two_design":
        return two_design_columns(angles, ansatz.n_qubits, ansatz.n_layers, [0]).squeeze(2)
    return staged_states(angles, ansatz)


def _is_fast(ansatz: Ansatz) -> bool:
    return ansatz.name in ("ry_ladder", "two_design") or fast_probabilities(ansatz) is not None


@full_precision
def _run(angles: Tensor, ansatz: Ansatz) -> Tensor:
    n_qubits, n_layers = ansatz.n_qubits, ansatz.n_layers
    if (fast := fast_probabilities(ansatz)) is not None:
        check_circuit(ansatz)
        found = fast(angles, n_qubits, n_layers)
        _check_fast(ansatz, angles, found)
        return found
    if ansatz.name == "two_design":
        return two_design_columns(angles, n_qubits, n_layers, [0]).squeeze(1).square()
    psi = staged_states(angles[None], ansatz)[0]
    return psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()


def _check_fast(ansatz: Ansatz, angles: Tensor, found: Any) -> None:
    """Raise ConfigError unless `found` is what the fast simulation of a user has to return."""
    what = f"ansatz {ansatz.name}: the function `probabilities` returned"
    if not isinstance(found, Tensor):
        raise ConfigError(f"{what} {type(found).__name__}; return a torch.Tensor, computed by torch from the angles")
    wanted = (2**ansatz.n_qubits,), angles.dtype, angles.device
    if (tuple(found.shape), found.dtype, found.device) != wanted:
        raise ConfigError(
            f"{what} shape {tuple(found.shape)}, {found.dtype}, on {found.device} for {ansatz.n_qubits} qubits; "
            f"return shape {wanted[0]}, {wanted[1]}, on {wanted[2]}: the dtype and device of the angles"
        )
    if angles.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
        raise ConfigError(
            f"{what} a tensor without gradient, so the angles would not be trained; compute it by torch from the "
            "angles, without detach(), numpy or torch.no_grad()"
        )
