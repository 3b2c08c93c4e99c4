"""Circuits of RY and CZ that prepare real amplitudes and multiply them by an orthogonal matrix, up
to signs.

Both are sequences of *multiplexed* RY: a wire turns by an angle theta_c that depends on the value c
of k control wires. N of them prepare a state (arXiv quant-ph/0407010), 2^N - 1 of them make the
cosine-sine decomposition of a matrix. One is a sequence of plain rotations and CZ,

    RY(phi_0), CZ, RY(phi_1), CZ, ..., RY(phi_m), (CZ)      m + 1 = 2^k

with controls in the order of a Gray code g, and phi_i = 2^-k sum_c (-1)^(c . g_i) theta_c. Its last
CZ, in brackets, changes only signs of amplitudes. It is left out, and the angles of what follows
take the signs into account.

The smallest example: two qubits with amplitudes (a_0, a_1, a_2, a_3). Wire 0 turns by 2 atan2(|(a_2,
a_3)|, |(a_0, a_1)|). Wire 1 shall turn by theta_0 = 2 atan2(a_1, a_0) where wire 0 is 0, and by
theta_1 = 2 atan2(a_3, a_2) where it is 1. The gates RY((theta_0 + theta_1) / 2), CZ, RY((theta_0 -
theta_1) / 2), CZ do this: for 1 the two CZ turn the second rotation around, Z RY(phi) Z = RY(-phi).
Without the last CZ the last amplitude has the other sign, so the angles are those of the state
(a_0, a_1, a_2, -a_3).

Wire 0 belongs to the most significant bit of an amplitude's index. All angles are in radians.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import NamedTuple

import numpy as np
from scipy.linalg import cossin

from qpeft.backends.backend import Numbers
from qpeft.circuits import Ansatz, Gate
from qpeft.circuits.convert import fixed_ansatz


@cache
def circuit_on_inputs(size: int, circuit: Ansatz | None) -> Ansatz:
    """The preparation of a state (size,), then this circuit or, for None, an orthogonal matrix.

    Its angles are flat (n_angles,): those of the preparation, then those of the circuit or matrix.
    """
    n_qubits = size.bit_length() - 1
    slots = count()
    gates: list[Gate] = []
    for wire in range(n_qubits):
        gates += _multiplexed_gates(n_qubits, wire, n_controls=wire, slots=slots)
    if circuit is None:
        for wire in _wires_of_matrix(n_qubits):
            gates += _multiplexed_gates(n_qubits, wire, n_controls=n_qubits - 1, slots=slots)
    n_angles = next(slots)
    if circuit is not None:
        own_slots = np.arange(n_angles, n_angles + circuit.n_angles).reshape(circuit.angle_shape)
        for gate in circuit.gates():
            slot = None if gate.slot is None else (int(own_slots[gate.slot]),)
            gates.append(gate._replace(slot=slot))
        n_angles += circuit.n_angles
    return fixed_ansatz("amplitudes", n_qubits, (n_angles,), gates)


def angles_on_inputs(states: Numbers, circuit: Ansatz | None, values: Numbers) -> Numbers:
    """The angles (R, .., n_angles) of `circuit_on_inputs` for normalized states (R, .., 2**N).

    `values` are the angles of the circuit, or orthogonal matrices (.., 2**N, 2**N).
    """
    size = states.shape[-1]
    if circuit is not None:
        behind = values.flatten()
    else:
        matrices = values.reshape(-1, size, size)
        behind = np.stack([_angles_of_matrix(matrix) for matrix in matrices])
        behind = behind.reshape(*values.shape[:-2], -1)  # (.., angles of a matrix)
    of_states = _angles_of_states(states)
    behind = np.broadcast_to(behind, (*states.shape[:-1], behind.shape[-1]))
    return np.concatenate([of_states, behind], -1)


# -- gates


def _multiplexed_gates(
    n_qubits: int, wire: int, n_controls: int, slots: Iterator[int]
) -> Iterator[Gate]:
    """A multiplexed RY of `wire` without its last CZ; its angles phi are at the next `slots`."""
    controls = _controls(n_qubits, wire)[:n_controls]
    n_rotations = 2**n_controls
    for i in range(1, n_rotations + 1):
        yield Gate("ry", (wire,), (next(slots),))
        if i < n_rotations:
            # the codes i - 1 and i differ in the lowest bit of i
            yield Gate("cz", (controls[-_lowest_bit(i)], wire))


def _wires_of_matrix(n_qubits: int) -> list[int]:
    """The wire of each multiplexed RY of a matrix, in the order of `_factors`: for N = 2 1, 0, 1."""
    return [n_qubits - _lowest_bit(i) for i in range(1, 2**n_qubits)]


def _controls(n_qubits: int, wire: int) -> list[int]:
    return [other for other in range(n_qubits) if other != wire]


def _lowest_bit(number: int) -> int:
    """The place of the lowest bit that is 1, counted from 1."""
    return (number & -number).bit_length()


# -- angles


class Turned(NamedTuple):
    """A multiplexed RY as plain rotations, and what its missing CZ leaves behind."""

    phi: Numbers  # (.., 2**k) angles of the rotations
    signs: Numbers  # (2**N,) of the amplitudes behind it, 1 or -1


def _turned(theta: Numbers, wire: int, signs: Numbers) -> Turned:
    """The multiplexed RY by theta (.., 2**k), on amplitudes that have the wrong `signs` (2**N,)."""
    n_qubits = len(signs).bit_length() - 1
    n_values = theta.shape[-1]  # of the controls
    index = np.arange(2**n_qubits)
    mask = 2 ** (n_qubits - 1 - wire)  # the bit of the wire
    # for each value of the controls the two amplitudes that the rotation mixes
    zeros = index[index & mask == 0][:: 2 ** (n_qubits - 1) // n_values]
    ones = zeros + mask
    # the sign of one of the two turns the rotation around
    theta = theta * signs[zeros] * signs[ones]
    phi = theta @ _gray_signs(n_values) / n_values
    if n_values == 1:  # no controls, so there is no CZ
        return Turned(phi, signs)
    first_mask = 2 ** (n_qubits - 1 - _controls(n_qubits, wire)[0])
    is_flipped = (index & first_mask > 0) & (index & mask > 0)
    return Turned(phi, np.where(is_flipped, -signs, signs))


@cache
def _gray_signs(n_values: int) -> Numbers:
    """(-1)^(c . g_i) for all values c and numbers i, (n_values, n_values)."""
    c = np.arange(n_values)
    gray = c ^ c >> 1
    return (-1.0) ** np.bitwise_count(c[:, None] & gray)


def _angles_of_states(states: Numbers) -> Numbers:
    """The angles (R, .., 2**N - 1) of the preparation of normalized states (R, .., 2**N)."""
    n_qubits = states.shape[-1].bit_length() - 1
    no_signs = np.ones(2**n_qubits)
    # the signs behind the whole preparation do not depend on the state
    signs = no_signs
    for wire in range(n_qubits):
        signs = _turned(np.zeros(2**wire), wire, signs).signs
    wanted = states * signs
    parts = []
    for wire in range(n_qubits):
        # by the bits before the wire, the wire's bit, and the bits behind it
        halves = wanted.reshape(*states.shape[:-1], 2**wire, 2, -1)
        is_last = wire == n_qubits - 1
        sizes = halves[..., 0] if is_last else np.linalg.norm(halves, axis=-1)  # (.., 2**wire, 2)
        theta = 2 * np.arctan2(sizes[..., 1], sizes[..., 0])
        # the wire is still 0, so that signs of the amplitudes with 1 do not matter
        parts.append(_turned(theta, wire, no_signs).phi)
    return np.concatenate(parts, -1)


def _angles_of_matrix(matrix: Numbers) -> Numbers:
    """The angles ((2**N - 1) 2**(N - 1),) of an orthogonal matrix (2**N, 2**N)."""
    size = len(matrix)
    signs = np.ones(size)
    parts = []
    for factor in _factors(matrix[None], wire=0):
        if 2**factor.wire == size:
            signs = signs * factor.values
        else:
            turned = _turned(factor.values, factor.wire, signs)
            signs = turned.signs
            parts.append(turned.phi)
    return np.concatenate(parts)


class Factor(NamedTuple):
    """A factor of a matrix: a multiplexed RY of `wire`, or, for wire N, a diagonal of signs."""

    wire: int
    values: Numbers  # theta (2**(N - 1),), or signs (2**N,)


def _factors(blocks: Numbers, wire: int) -> Iterator[Factor]:
    """The factors of a block-diagonal orthogonal matrix from the right, the first that acts first.

    `blocks` (2**wire, m, m) are the blocks. Each is the product of blocks of half the size, a
    multiplexed RY, and blocks of half the size (the cosine-sine decomposition).
    """
    half = blocks.shape[-1] // 2
    if not half:
        yield Factor(wire, blocks.flatten())
        return
    decomposed = [cossin(block, half, half, separate=True) for block in blocks]
    left, angles, right = zip(*decomposed, strict=True)  # of each block (2, m/2, m/2), (m/2,), ...
    yield from _factors(np.reshape(right, (-1, half, half)), wire + 1)
    yield Factor(wire, 2 * np.concatenate(angles))
    yield from _factors(np.reshape(left, (-1, half, half)), wire + 1)
