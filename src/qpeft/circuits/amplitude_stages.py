"""QAA's circuits as matrices: from angles to the stages of `amplitude_run`.

The last ring is never applied but left to the readout, and so are the rotations that <Z> sees behind it in `square`:
with psi the state before that ring,

    z_r = cos t3_r <psi| Z_r' |psi> - sin t3_r <psi| X_r' |psi>

where Z_r' is a parity of bits and X_r' flips bits, j to j' (`amplitude_tables`). With one layer, the phases are not
applied either: psi = (RY(t1_1) (x) ... (x) RY(t1_N)) a stays real, and

    <X_r'> becomes sum_j psi_j psi_j' cos(sum over flipped bits i of s_ij t2_i)

Neighbouring rotations of a wire are one matrix, and so are the rotations of a group of wires.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from qpeft.circuits.amplitude_readout import Expectations, Flips, Probabilities, Readout
from qpeft.circuits.amplitude_run import Circuit
from qpeft.circuits.amplitude_tables import flip_signs, flip_table, ring_tables, sign_table

GROUP = 5  # wires at most: larger matrices do more work, smaller ones as much in more products (measured)


def expectation_circuit(angles: Tensor, ansatz: str) -> Circuit:
    """The circuit that reads <Z> of every wire; angles (L, blocks, N)."""
    of_z = sign_table(angles.shape[-1], angles.dtype, angles.device)
    if ansatz == "square":
        return _measured_before_the_end(angles, of_z)
    return _circuit(_GATES[ansatz](angles), Expectations(of_z))


def probability_circuit(angles: Tensor, ansatz: str) -> Circuit:
    """The circuit that reads the probabilities of all basis states; angles (L, blocks, N)."""
    last_ring = None if ansatz == "square" else ring_tables(angles.shape[-1], angles.device)
    return _circuit(_GATES[ansatz](angles), Probabilities(last_ring))


def _measured_before_the_end(angles: Tensor, of_z: Tensor) -> Circuit:
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
    """(L, N, 2, 2): without the last layer's phases, which nothing reads."""
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


def _circuit(gates: Tensor, readout: Readout, weights: Tensor | None = None) -> Circuit:
    """Of every stage's gates (S, N, 2, 2) one matrix (2**k, 2**k) for each group of wires."""
    n_qubits = gates.shape[1]
    groups = [_kron(group).unbind() for group in gates.tensor_split(ceil(n_qubits / GROUP), dim=1)]
    return Circuit(tuple(zip(*groups, strict=True)), ring_tables(n_qubits, gates.device), readout, weights)


def _kron(gates: Tensor) -> Tensor:
    """Kronecker products over the wires: (S, k, 2, 2) -> (S, 2**k, 2**k)"""
    product, *rest = gates.unbind(1)
    for gate in rest:
        product = (product[:, :, None, :, None] * gate[:, None, :, None, :]).flatten(3).flatten(1, 2)
    return product
