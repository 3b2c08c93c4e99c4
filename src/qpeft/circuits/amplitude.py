"""QAA's circuits on inputs embedded as amplitudes: exact expectations and probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qpeft.circuits.amplitude_run import Circuit, run
from qpeft.circuits.amplitude_stages import expectation_circuit, probability_circuit
from qpeft.circuits.ansatz import AMPLITUDE_ANSATZE, Ansatz
from qpeft.circuits.precision import full_precision
from qpeft.errors import ConfigError, UnsupportedTypeError

MOST_QUBITS = 16


def amplitude_qubits(width: int) -> int:
    """Qubits N = max(1, ceil(log2 width)) whose 2**N amplitudes hold `width` numbers.

    Raises ConfigError for a width below 1 and for more than 16 qubits.
    """
    if width < 1:
        raise ConfigError(f"an input must be at least 1 wide, got {width}")
    n_qubits = max(1, (width - 1).bit_length())
    if n_qubits > MOST_QUBITS:
        raise ConfigError(f"QAA needs n = {n_qubits} qubits for d_in = {width}; the simulator limit is {MOST_QUBITS}.")
    return n_qubits


def amplitude_expectations(x: Tensor, angles: Tensor, ansatz: str = "square") -> Tensor:
    """<Z> of every wire, (..., N), behind a circuit that starts in x (..., d); angles (L, blocks, N).

    Equation (QAA-1). The circuit is `Ansatz(ansatz, N, L)` with N = max(1, ceil(log2 d)). It starts in the amplitudes
    ``a = x / max(||x||, 1e-8)`` with zeros appended up to 2**N. With psi its final state,
    ``z_r = sum_j s_rj |psi_j|^2``, where s_rj is +1 if wire r is 0 in j, else -1. All are 0 for x = 0, and each is
    an exactly even function of x.

    x and angles are float32 or float64, both the same, and so is the result. Its gradients in x and angles are exact;
    there is no second derivative.

    Raises ConfigError for an unknown ansatz, for angles of another shape or device and for more than 16 qubits,
    UnsupportedTypeError for another dtype.
    """
    return _read(x, angles, ansatz, expectation_circuit)


def amplitude_probabilities(x: Tensor, angles: Tensor, ansatz: str = "square") -> Tensor:
    """Probabilities ``|psi_j|^2`` of the basis states, (..., 2**N).

    `x` (..., d), `angles` (L, blocks, N), `ansatz`, dtypes and gradients are those of `amplitude_expectations`. Raises
    what that raises.
    """
    return _read(x, angles, ansatz, probability_circuit)


def _read(x: Tensor, angles: Tensor, ansatz: str, circuit: Callable[[Tensor, str], Circuit]) -> Tensor:
    _check(x, angles, ansatz)
    return _run(angles, x, ansatz, circuit)


@full_precision
def _run(angles: Tensor, x: Tensor, ansatz: str, circuit: Callable[[Tensor, str], Circuit]) -> Tensor:
    result = run(x.reshape(-1, x.shape[-1]), circuit(angles, ansatz))
    return result.view(*x.shape[:-1], result.shape[-1])


def _check(x: Tensor, angles: Tensor, ansatz: str) -> None:
    if ansatz not in AMPLITUDE_ANSATZE:
        raise ConfigError(f"unknown ansatz '{ansatz}'; choose one of {', '.join(AMPLITUDE_ANSATZE)}")
    if not x.ndim:
        raise ConfigError("an input needs an axis of amplitudes, got a single number")
    n_layers = len(angles) if angles.ndim else 0
    shape = Ansatz(ansatz, amplitude_qubits(x.shape[-1]), n_layers).angle_shape
    if angles.shape != shape:
        raise ConfigError(
            f"'{ansatz}' on inputs of width {x.shape[-1]} needs angles of shape (n_layers, "
            f"{shape[1]}, {shape[2]}), got {tuple(angles.shape)}"
        )
    for name, tensor in (("x", x), ("angles", angles)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise UnsupportedTypeError(f"{name} must be float32 or float64, got {tensor.dtype}; cast with .float()")
    if (x.dtype, x.device) != (angles.dtype, angles.device):
        kinds = " and ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (x, angles))
        raise ConfigError(f"x and angles must have the same dtype and device, got {kinds}")
