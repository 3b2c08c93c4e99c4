"""QAA's circuits on basis states satisfy the public contract."""

from functools import partial, reduce

import pytest
import torch

from qpeft.circuits import Ansatz, amplitude_probabilities
from qpeft.testing import ansatz_contract

X, Y, Z = (torch.tensor(pauli, dtype=torch.complex128) for pauli in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [1, -1]))
PAULIS = {"rx": X, "ry": Y, "rz": Z.diag()}
BLOCKS = {"square": ["ry", "rz", "ring", "ry"], "qaa": ["ry", "ring"], "rxyz": ["rx", "ry", "rz", "ring"]}


def on_wires(n_qubits, matrices):
    """One matrix for all wires; `matrices` (wire -> 2 x 2), the identity on the others."""
    return reduce(torch.kron, [matrices.get(wire, torch.eye(2) + 0j) for wire in range(n_qubits)])


def dense_reference(angles, ansatz, swapped=False):
    """Probabilities from dense matrices: exponentials of Paulis, projectors for CNOTs; started in |0...0>."""
    n_qubits = angles.shape[-1]
    up, down = (torch.diag(torch.tensor(bits)) + 0j for bits in ([1.0, 0.0], [0.0, 1.0]))
    psi = torch.eye(2**n_qubits, dtype=torch.complex128)[0]
    for layer in angles:
        rows = iter(layer)
        for block in BLOCKS[ansatz]:
            if block != "ring":
                turns = [torch.matrix_exp(-0.5j * angle * PAULIS[block]) for angle in next(rows)]
                psi = on_wires(n_qubits, dict(enumerate(turns))) @ psi
                continue
            for wire in range(n_qubits if n_qubits > 1 else 0):
                control, target = wire, (wire + 1) % n_qubits
                if swapped:
                    control, target = target, control
                psi = (on_wires(n_qubits, {control: up}) + on_wires(n_qubits, {control: down, target: X})) @ psi
    return (psi * psi.conj()).real


def from_zero(angles, ansatz):
    start = torch.zeros(2 ** angles.shape[-1], dtype=angles.dtype)
    start[0] = 1
    return amplitude_probabilities(start, angles, ansatz)


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("n_qubits", range(1, 7))
@pytest.mark.parametrize("ansatz", BLOCKS)
def test_contract_is_satisfied(ansatz, n_qubits, n_layers):
    ansatz_contract(
        partial(Ansatz, ansatz, n_qubits, n_layers),
        partial(from_zero, ansatz=ansatz),
        partial(dense_reference, ansatz=ansatz),
    )


@pytest.mark.parametrize("ansatz", BLOCKS)
def test_contract_detects_a_reversed_ring(ansatz):
    with pytest.raises(AssertionError, match="dense reference"):
        ansatz_contract(
            partial(Ansatz, ansatz, 4, 2),
            partial(from_zero, ansatz=ansatz),
            partial(dense_reference, ansatz=ansatz, swapped=True),
        )
