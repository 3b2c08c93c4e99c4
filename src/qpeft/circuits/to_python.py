"""An ansatz as a Python file of its own, which needs PennyLane or Qiskit and nothing of qpeft."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qpeft.circuits.given_angles import given_angles

if TYPE_CHECKING:
    from qpeft.circuits.ansatz import Ansatz

_PENNYLANE = '''\
"""{title}, as a PennyLane circuit. Needs: pip install pennylane"""

import pennylane as qml
{numpy}{angles}

@qml.qnode(qml.device("default.qubit", wires={n}))
def probabilities(angles):
    """Probabilities of the {outcomes} basis states, wire 0 the most significant bit; angles {shape}, radians."""
    {gates}
    return qml.probs(wires=range({n}))
{main}'''

_QISKIT = '''\
"""{title}, as a Qiskit circuit. Needs: pip install qiskit"""

{numpy}from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
{angles}

def circuit(angles):
    """The circuit without measurement; angles {shape}, radians."""
    made = QuantumCircuit({n})
    {gates}
    return made


def probabilities(angles):
    """Probabilities of the {outcomes} basis states, qubit 0 the most significant bit, where Qiskit has it last."""
    return Statevector(circuit(angles).reverse_bits()).probabilities()
{main}'''

_MAIN = """

if __name__ == "__main__":
    print(probabilities(ANGLES))
"""


def to_pennylane_file(ansatz: Ansatz, angles: Any = None) -> str:
    """A file with `probabilities(angles)`, a QNode; and with `ANGLES` where angles are given.

    Raises ConfigError for angles of another shape.
    """
    kinds = {"rx": "RX", "ry": "RY", "rz": "RZ", "cx": "CNOT", "cz": "CZ"}
    gates = []
    for name, wires, slot in ansatz.gates():
        angle = "" if slot is None else f"angles{list(slot)}, "
        gates.append(f"qml.{kinds[name]}({angle}wires={wires[0] if slot else list(wires)})")
    return _filled(_PENNYLANE, "from pennylane import numpy as np", ansatz, angles, gates)


def to_qiskit_file(ansatz: Ansatz, angles: Any = None) -> str:
    """A file with `circuit(angles)` and `probabilities(angles)`; and with `ANGLES` where angles are given.

    Raises ConfigError for angles of another shape.
    """
    gates = []
    for name, wires, slot in ansatz.gates():
        arguments = [*([] if slot is None else [f"angles{list(slot)}"]), *map(str, wires)]
        gates.append(f"made.{name}({', '.join(arguments)})")
    return _filled(_QISKIT, "import numpy as np", ansatz, angles, gates)


def _filled(template: str, numpy: str, ansatz: Ansatz, angles: Any, gates: list[str]) -> str:
    return template.format(
        title=f"{ansatz.name}, n_qubits={ansatz.n_qubits}, n_layers={ansatz.n_layers}",
        numpy="" if angles is None else f"{numpy}\n",
        n=ansatz.n_qubits,
        outcomes=2**ansatz.n_qubits,
        shape=ansatz.angle_shape,
        angles="" if angles is None else _array(ansatz, angles),
        gates="\n    ".join(gates),
        main="" if angles is None else _MAIN,
    )


def _array(ansatz: Ansatz, angles: Any) -> str:
    rows = [json.dumps(row) for row in given_angles(ansatz, angles).tolist()]
    return "\nANGLES = np.array(\n    [\n" + "".join(f"        {row},\n" for row in rows) + "    ]\n)\n"
