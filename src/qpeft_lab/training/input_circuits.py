"""Circuits of RY and CZ that prepare real amplitudes and multiply them by an orthogonal matrix, up
to signs.

Both are sequences of multiplexed RY, by an angle theta_c for each value c of k control wires: N
that prepare a state (arXiv quant-ph/0407010), 2^N - 1 of a matrix's cosine-sine decomposition. One
is RY(phi_0), CZ, RY(phi_1), CZ, .. with controls in the order of a Gray code g, and phi_i = 2^-k
sum_c (-1)^(c . g_i) theta_c. Its last CZ changes only signs of amplitudes, so it is left out, and
the angles of what follows take the signs into account.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count

import numpy as np
from scipy.linalg import cossin

from qpeft.backends.backend import Numbers
from qpeft.circuits import Ansatz, Gate
from qpeft.circuits.convert import fixed_ansatz


@cache
def circuit_on_inputs(size: int, circuit: Ansatz | None) -> Ansatz:
    """The preparation of a state (size,), then this circuit or, for None, an orthogonal matrix;
    with flat angles.
    """
    n_qubits, slots, gates = size.bit_length() - 1, count(), []
    turns = [(wire, wire) for wire in range(n_qubits)]
    if circuit is None:
        turns += [(n_qubits - (i & -i).bit_length(), n_qubits - 1) for i in range(1, size)]
    for wire, k in turns:
        controls = _controls(n_qubits, wire)[:k]
        for i in range(1, 2**k + 1):
            gates.append(Gate("ry", (wire,), (next(slots),)))
            if i < 2**k:  # the numbers i - 1 and i of the Gray code differ in the lowest bit of i
                gates.append(Gate("cz", (controls[-(i & -i).bit_length()], wire)))
    n_turned = next(slots)
    if circuit is not None:
        places = np.arange(n_turned, n_turned + circuit.n_angles).reshape(circuit.angle_shape)
        gates += [
            gate._replace(slot=gate.slot and (int(places[gate.slot]),)) for gate in circuit.gates()
        ]
        n_turned += circuit.n_angles
    return fixed_ansatz("amplitudes", n_qubits, (n_turned,), gates)


def angles_on_inputs(states: Numbers, circuit: Ansatz | None, values: Numbers) -> Numbers:
    """Angles (R, .., angles) of `circuit_on_inputs` for normalized states (R, .., 2**N).

    `values` are the angles of the circuit, or orthogonal matrices (.., 2**N, 2**N).
    """
    n, turns = states.shape[-1].bit_length() - 1, []
    signs = same = np.ones(2**n)
    for wire in range(n):  # the signs behind a preparation, which are those of every state
        signs = _turned(np.zeros(2**wire), wire, signs)[1]
    for wire in range(n):
        halves = (states * signs).reshape(*states.shape[:-1], 2**wire, 2, -1)
        low, high = np.moveaxis(
            halves[..., 0] if wire == n - 1 else np.linalg.norm(halves, axis=-1), -1, 0
        )
        turns.append(_turned(2 * np.arctan2(high, low), wire, same)[0])
    if circuit is not None:
        behind = values.flatten()
    else:
        behind = np.stack([_of_matrix(matrix) for matrix in values.reshape(-1, 2**n, 2**n)])
        behind = behind.reshape(*values.shape[:-2], -1)
    return np.concatenate(
        [*turns, np.broadcast_to(behind, (*states.shape[:-1], behind.shape[-1]))], -1
    )


def _of_matrix(matrix: Numbers) -> Numbers:
    """The angles of an orthogonal matrix."""
    turns, signs = [], np.ones(len(matrix))
    for wire, found in _factors(matrix[None], 0):
        if 2**wire == len(matrix):
            signs = signs * found
        else:
            phi, signs = _turned(found, wire, signs)
            turns.append(phi)
    return np.concatenate(turns)


def _factors(blocks: Numbers, wire: int) -> Iterator[tuple[int, Numbers]]:
    """Factors of a block-diagonal matrix, from the right: angles theta of a wire, or for wire N the
    signs (2**N,).
    """
    half = blocks.shape[-1] // 2
    if not half:
        yield wire, blocks.flatten()
        return
    left, angles, right = zip(
        *(cossin(block, half, half, separate=True) for block in blocks), strict=True
    )
    yield from _factors(np.reshape(right, (-1, half, half)), wire + 1)
    yield wire, 2 * np.concatenate(angles)
    yield from _factors(np.reshape(left, (-1, half, half)), wire + 1)


def _turned(theta: Numbers, wire: int, signs: Numbers) -> tuple[Numbers, Numbers]:
    """The angles phi of a multiplexed RY on amplitudes with these signs, and the signs behind it."""
    n, size = len(signs).bit_length() - 1, theta.shape[-1]
    index, c, last = np.arange(2**n), np.arange(size), 2 ** (n - 1 - wire)
    low = index[index & last == 0][:: 2 ** (n - 1) // size]
    theta = theta * signs[low] * signs[low + last]
    phi = theta @ (-1.0) ** np.bitwise_count(c[:, None] & (c ^ c >> 1)) / size
    first = 2 ** (n - 1 - _controls(n, wire)[0]) if size > 1 else 0
    return phi, np.where((index & first > 0) & (index & last > 0), -signs, signs)


def _controls(n_qubits: int, wire: int) -> list[int]:
    return [other for other in range(n_qubits) if other != wire]
