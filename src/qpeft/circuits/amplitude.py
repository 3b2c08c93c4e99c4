"""QAA's circuits on inputs embedded as amplitudes: exact expectations and probabilities.

The angles become the matrices of `amplitude_run`'s stages. The last ring is never applied: the readout contains it, and
so are the rotations behind it in `square`. With psi the state before that ring,

    z_r = cos t3_r <psi| Z_r' |psi> - sin t3_r <psi| X_r' |psi>

where Z_r' is a parity of bits and X_r' flips bits, j to j' (`amplitude_readout`). With one layer, the phases are not
applied either: psi = (RY(t1_1) (x) ... (x) RY(t1_N)) a stays real, and

    <X_r'> becomes sum_j psi_j psi_j' cos(sum over flipped bits i of s_ij t2_i)

Neighbouring rotations of a wire are one matrix, and so are the rotations of a group of wires.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from qpeft.circuits.amplitude_readout import (
    Expectations,
    Flips,
    Probabilities,
    Readout,
    flip_signs,
    flip_table,
    ring_tables,
    sign_table,
)
from qpeft.circuits.amplitude_run import StagedCircuit, run
from qpeft.circuits.ansatz import AMPLITUDE_ANSATZE, Ansatz
from qpeft.circuits.numerics import full_precision, has_nonfinite
from qpeft.errors import ConfigError, UnsupportedTypeError

MOST_QUBITS = 16


def amplitude_qubits(width: int) -> int:
    """Qubits N = max(1, ceil(log2 width)) whose 2**N amplitudes hold `width` values.

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
    ``a = x / max(||x||, 1e-8)`` padded with zeros to 2**N. With psi its final state,
    ``z_r = sum_j s_rj |psi_j|^2``, where s_rj is +1 if wire r is 0 in j, else -1. All are 0 for x = 0, and each is
    an exactly even function of x.

    x and angles are float32 or float64, both the same, and so is the result. Its gradients in x and angles are exact;
    there is no second derivative.

    A NaN or infinite value in x makes the results of its row NaN. Norms above 1.8e19 overflow in float32 and give 0, as
    in RMSNorm.

    Raises ConfigError for an unknown ansatz, for angles of another shape or device, for more than 16 qubits, and on the
    CPU for angles that are not finite, UnsupportedTypeError for another dtype.
    """
    _check(x, angles, ansatz)
    return _run(angles, x, ansatz, expectation_circuit)


def amplitude_probabilities(x: Tensor, angles: Tensor, ansatz: str = "square") -> Tensor:
    """Probabilities ``|psi_j|^2`` of the basis states, (..., 2**N).

    `x` (..., d), `angles` (L, blocks, N), `ansatz`, dtypes and gradients are those of `amplitude_expectations`. Raises
    what that raises.
    """
    _check(x, angles, ansatz)
    return _run(angles, x, ansatz, probability_circuit)


@full_precision
def _run(angles: Tensor, x: Tensor, ansatz: str, circuit: Callable[[Tensor, str], StagedCircuit]) -> Tensor:
    result = run(x.reshape(-1, x.shape[-1]), circuit(angles, ansatz))
    return result.view(*x.shape[:-1], result.shape[-1])


def _check(x: Tensor, angles: Tensor, ansatz: str) -> None:
    if ansatz not in AMPLITUDE_ANSATZE:
        raise ConfigError(f"unknown ansatz '{ansatz}'; choose one of {', '.join(AMPLITUDE_ANSATZE)}")
    if not x.ndim:
        raise ConfigError("an input needs an axis of amplitudes, got a scalar")
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
    if has_nonfinite(angles):
        raise ConfigError("circuit angles contain NaN or Inf")


GROUP = 5  # at most so many wires: larger matrices do more work, smaller ones as much in more products (measured)


def expectation_circuit(angles: Tensor, ansatz: str) -> StagedCircuit:
    """The circuit that measures <Z> of every wire; angles (L, blocks, N)."""
    of_z = sign_table(angles.shape[-1], angles.dtype, angles.device)
    if ansatz == "square":
        return _measured_before_the_end(angles, of_z)
    return _circuit(_GATES[ansatz](angles), Expectations(of_z))


def probability_circuit(angles: Tensor, ansatz: str) -> StagedCircuit:
    """The circuit that measures the probabilities of all basis states; angles (L, blocks, N)."""
    last_ring = None if ansatz == "square" else ring_tables(angles.shape[-1], angles.device)
    return _circuit(_GATES[ansatz](angles), Probabilities(last_ring))


def _measured_before_the_end(angles: Tensor, of_z: Tensor) -> StagedCircuit:
    """`square` without its last ring and rotations; angles (L, 3, N)."""
    n_qubits, last = angles.shape[-1], angles[-1, 2]
    signs, owner = flip_signs(n_qubits, angles.dtype, angles.device)
    of_x = -2 * owner * last.sin()  # (F - N, N)
    if len(angles) == 1:
        gates = _ry(angles[:, 0])
        of_x = of_x * (signs * angles[0, 1]).sum(1, keepdim=True).cos()
    else:
        gates = _square(angles)[:-1]
    return _circuit(gates, Flips(of_z, flip_table(n_qubits)), torch.cat([last.cos().diag(), of_x]))


def _square(angles: Tensor) -> Tensor:
    """(L + 1, N, 2, 2): RY of one layer and the first of the next are one; none of the last has phases."""
    first, phases, last = angles.unbind(1)
    none = torch.zeros_like(first[:1])
    turns = torch.cat([first, none]) + torch.cat([none, last])
    return _rz(torch.cat([phases, none])) * _ry(turns)


def _qaa(angles: Tensor) -> Tensor:
    """(L, N, 2, 2)"""
    return _ry(angles[:, 0])


def _rxyz(angles: Tensor) -> Tensor:
    """(L, N, 2, 2): without the last layer's phases, which affect no measurement."""
    rx, ry, rz = angles.unbind(1)
    phases = torch.cat([rz[:-1], torch.zeros_like(rz[:1])])
    return _rz(phases) * (_ry(ry).to(phases.dtype.to_complex()) @ _rx(rx))


_GATES = {"square": _square, "qaa": _qaa, "rxyz": _rxyz}


def _ry(angles: Tensor) -> Tensor:
    """(..., N) -> (..., N, 2, 2)"""
    c, s = (angles / 2).cos(), (angles / 2).sin()
    return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))


def _rx(angles: Tensor) -> Tensor:
    """(..., N) -> (..., N, 2, 2) complex"""
    c, s = (angles / 2).cos(), -1j * (angles / 2).sin()
    return torch.stack([c + 0j, s, s, c + 0j], -1).unflatten(-1, (2, 2))


def _rz(angles: Tensor) -> Tensor:
    """(..., N) -> the diagonal (..., N, 2, 1) complex"""
    phase = torch.exp(-0.5j * angles)
    return torch.stack([phase, phase.conj()], -1)[..., None]


def _circuit(gates: Tensor, readout: Readout, weights: Tensor | None = None) -> StagedCircuit:
    """From every stage's gates (S, N, 2, 2) one matrix (2**k, 2**k) for each group of wires."""
    n_qubits = gates.shape[1]
    groups = [_kron(group).unbind() for group in gates.tensor_split(ceil(n_qubits / GROUP), dim=1)]
    return StagedCircuit(tuple(zip(*groups, strict=True)), ring_tables(n_qubits, gates.device), readout, weights)


def _kron(gates: Tensor) -> Tensor:
    """Kronecker products over the wires: (S, k, 2, 2) -> (S, 2**k, 2**k)"""
    product, *rest = gates.unbind(1)
    for gate in rest:
        product = (product[:, :, None, :, None] * gate[:, None, :, None, :]).flatten(3).flatten(1, 2)
    return product
