"""QAA's circuits as matrices: from angles to the stages of `amplitude_run`.

`square` with one layer and <Z> readout needs neither its phases nor its ring nor its last rotation: with
psi = (RY(t1_1) (x) ... (x) RY(t1_N)) a, which is real,

    z_r = cos t3_r <psi| Z_r' |psi> - sin t3_r sum_j psi_j psi_j' cos(sum over flipped bits i of s_ij t2_i)

where Z_r' is Z_r behind the ring and j' is j with those bits flipped that X_r flips behind the ring
(`amplitude_tables`). Every other circuit is applied as it is, but for its last ring, which is left to the readout.
Neighbouring rotations of a wire are one matrix, and so are the rotations of a group of wires.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from qpeft.circuits.amplitude_readout import Expectations, Flips, Probabilities
from qpeft.circuits.amplitude_run import Circuit
from qpeft.circuits.amplitude_tables import Ring, flip_signs, flip_table, ring_tables, sign_table

GROUP = 5  # wires at most: larger matrices do more work, smaller ones as much in more products (measured)


def expectation_circuit(angles: Tensor, ansatz: str) -> Circuit:
    """The circuit that reads <Z> of every wire; angles (L, blocks, N)."""
    n_qubits, ring = _ring(angles)
    if ansatz == "square" and len(angles) == 1:
        return _measured_before_the_end(angles[0], ring)
    signs = sign_table(n_qubits, ansatz != "square", angles.dtype, angles.device)
    return Circuit(_grouped(_GATES[ansatz](angles)), ring, Expectations(signs))


def probability_circuit(angles: Tensor, ansatz: str) -> Circuit:
    """The circuit that reads the probabilities of all basis states; angles (L, blocks, N)."""
    _, ring = _ring(angles)
    readout = Probabilities(None if ansatz == "square" else ring)
    return Circuit(_grouped(_GATES[ansatz](angles)), ring, readout)


def _ring(angles: Tensor) -> tuple[int, Ring]:
    return angles.shape[-1], ring_tables(angles.shape[-1], angles.device)


def _measured_before_the_end(angles: Tensor, ring: Ring) -> Circuit:
    """`square`, one layer, angles (3, N)."""
    first, phases, last = angles
    n_qubits = len(first)
    signs, owner = flip_signs(n_qubits, angles.dtype, angles.device)
    of_flips = owner * (-2 * last.sin()) * (signs * phases).sum(1, keepdim=True).cos()  # (F - N, N)
    weights = torch.cat([last.cos().diag(), of_flips])
    readout = Flips(sign_table(n_qubits, True, angles.dtype, angles.device), flip_table(n_qubits))
    return Circuit(_grouped(_ry(first)[None]), ring, readout, weights)


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


def _grouped(gates: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Of every stage's gates (S, N, 2, 2) one matrix (2**k, 2**k) for each group of wires."""
    n_groups = ceil(gates.shape[1] / GROUP)
    groups = [_kron(group) for group in gates.tensor_split(n_groups, dim=1)]
    return tuple(zip(*(group.unbind() for group in groups), strict=True))


def _kron(gates: Tensor) -> Tensor:
    """Kronecker products over the wires: (S, k, 2, 2) -> (S, 2**k, 2**k)"""
    product, *rest = gates.unbind(1)
    for gate in rest:
        product = (product[:, :, None, :, None] * gate[:, None, :, None, :]).flatten(3).flatten(1, 2)
    return product
