"""An ansatz as Qiskit's QuantumCircuit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.circuits.given_angles import given_angles
from qpeft.errors import missing_extra

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit

    from qpeft.circuits.ansatz import Ansatz


def to_qiskit(ansatz: Ansatz, angles: Any = None) -> QuantumCircuit:
    """The circuit without measurement, wire i on qubit i; free parameters "theta" where no angles are given.

    Raises ConfigError if Qiskit is missing, or for angles of another shape.
    """
    try:
        from qiskit.circuit import ParameterVector, QuantumCircuit
    except ModuleNotFoundError as error:
        raise missing_extra("to_qiskit", "Qiskit") from error
    values = ParameterVector("theta", ansatz.n_angles) if angles is None else given_angles(ansatz, angles).ravel()
    circuit = QuantumCircuit(ansatz.n_qubits, name=ansatz.name)
    for gate in ansatz.gates():
        add = getattr(circuit, gate.name)
        if gate.slot is None:
            add(*gate.wires)
        else:
            value = values[int(np.ravel_multi_index(gate.slot, ansatz.angle_shape))]
            add(value if angles is None else float(value), *gate.wires)
    return circuit
