"""A circuit for other programs: OpenQASM 3, PennyLane, Qiskit, Python files; and its size after transpilation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.circuits.circuit import Circuit
from qpeft.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qiskit.circuit import QuantumCircuit

_PENNYLANE_GATES = {"rx": "RX", "ry": "RY", "rz": "RZ", "cx": "CNOT", "cz": "CZ"}


def to_openqasm(circuit: Circuit, angles: Any = None) -> str:
    """OpenQASM 3 text without measurement; see `Ansatz.to_openqasm`."""
    values = None if angles is None else _checked(circuit, angles)
    free = _slots(circuit) if values is None else ()
    lines = [
        "OPENQASM 3.0;",
        'include "stdgates.inc";',
        f"// {_title(circuit)}, angles in radians",
        "// q[0] is the most significant bit of a basis index",
        *(f"input float[64] {_input(slot)};" for slot in free),
        f"qubit[{circuit.n_qubits}] q;",
    ]
    for name, wires, slot in circuit.gates():
        angle = "" if slot is None else f"({_input(slot) if values is None else float(values[slot])})"
        lines.append(f"{name}{angle} {', '.join(f'q[{wire}]' for wire in wires)};")
    return "\n".join(lines) + "\n"


def to_pennylane(circuit: Circuit) -> Callable[..., None]:
    """`queue(angles, wires=None)`, which queues the gates without measurement; see `Ansatz.to_pennylane`."""
    try:
        import pennylane as qml
    except ModuleNotFoundError as error:
        raise missing_extra("to_pennylane", "PennyLane") from error
    kinds = {name: getattr(qml, kind) for name, kind in _PENNYLANE_GATES.items()}

    def queue(angles: Any, wires: Sequence[Any] | None = None) -> None:
        found, shape = tuple(angles.shape), circuit.angle_shape
        if found[-len(shape) :] != shape or len(found) > len(shape) + 1:
            raise ConfigError(f"{_needed(circuit)}, or (B, *shape) for B circuits at once, got {found}")
        labels = list(range(circuit.n_qubits) if wires is None else wires)
        if len(labels) != circuit.n_qubits:
            raise ConfigError(f"{circuit.n_qubits} qubits need as many wires, got {len(labels)}: {labels}")
        for gate in circuit.gates():
            angle = () if gate.slot is None else (angles[(..., *gate.slot)],)  # shape () or (B,)
            kinds[gate.name](*angle, wires=[labels[wire] for wire in gate.wires])

    return queue


def to_qiskit(circuit: Circuit, angles: Any = None) -> QuantumCircuit:
    """A QuantumCircuit without measurement; see `Ansatz.to_qiskit`."""
    try:
        from qiskit.circuit import ParameterVector, QuantumCircuit
    except ModuleNotFoundError as error:
        raise missing_extra("to_qiskit", "Qiskit") from error
    n_angles = circuit.n_angles
    values = ParameterVector("theta", n_angles) if angles is None else _checked(circuit, angles).ravel().tolist()
    made, index = QuantumCircuit(circuit.n_qubits, name=circuit.name), {k: i for i, k in enumerate(_slots(circuit))}
    for name, wires, slot in circuit.gates():
        angle = () if slot is None else (values[index[slot]],)
        getattr(made, name)(*angle, *wires)
    return made


def to_python(circuit: Circuit, package: str, angles: Any = None) -> str:
    """A Python file for "pennylane" or "qiskit" that defines `probabilities(angles)`, and `ANGLES` if angles are given.

    It does not need qpeft. Raises ConfigError for angles of another shape.
    """
    gates = []
    for name, wires, slot in circuit.gates():
        angle = [] if slot is None else [f"angles{list(slot)}"]
        if package == "pennylane":
            gates.append(f"qml.{_PENNYLANE_GATES[name]}({', '.join([*angle, f'wires={list(wires)}'])})")
        else:
            gates.append(f"made.{name}({', '.join([*angle, *map(str, wires)])})")
    values = "" if angles is None else f"\nANGLES = np.array({json.dumps(_checked(circuit, angles).tolist())})\n"
    main = "" if angles is None else '\n\nif __name__ == "__main__":\n    print(probabilities(ANGLES))\n'
    return _PYTHON[package].format(
        title=_title(circuit), angles=values, n=circuit.n_qubits, gates="\n    ".join(gates), main=main
    )


_PYTHON = {
    "pennylane": '''\
"""{title}. Needs: pip install pennylane"""

import pennylane as qml
from pennylane import numpy as np
{angles}

@qml.qnode(qml.device("default.qubit", wires={n}))
def probabilities(angles):
    """Probabilities of the basis states, wire 0 the most significant bit; angles in radians."""
    {gates}
    return qml.probs(wires=range({n}))
{main}''',
    "qiskit": '''\
"""{title}. Needs: pip install qiskit"""

import numpy as np
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
{angles}

def circuit(angles):
    """The circuit without measurement; angles in radians."""
    made = QuantumCircuit({n})
    {gates}
    return made


def probabilities(angles):
    """Probabilities of the basis states; qubit 0 is the most significant bit, the last one in Qiskit."""
    return Statevector(circuit(angles).reverse_bits()).probabilities()
{main}''',
}


def transpiled_sizes(circuit: Circuit) -> dict[str, dict[str, int]]:
    """`depth` and `two_qubit_gates` by coupling ("all-to-all", "line", "heavy-hex") in the gates rz, sx, x, cx.

    Transpiled by Qiskit's default pass manager with a fixed seed and free angles: one result for all angles. Raises
    ConfigError if Qiskit is missing.
    """
    try:
        from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
    except ModuleNotFoundError as error:
        raise missing_extra("the size after transpiling", "Qiskit") from error
    n_qubits = circuit.n_qubits
    distance = 7  # of the heavy-hex lattice: 115 qubits, similar to existing devices
    while (5 * distance**2 - 2 * distance - 1) // 2 < n_qubits:
        distance += 2
    couplings = {
        "all-to-all": None,
        "line": CouplingMap.from_line(n_qubits),
        "heavy-hex": CouplingMap.from_heavy_hex(distance),
    }
    sizes = {}
    for name, coupling in couplings.items():
        passes = generate_preset_pass_manager(
            basis_gates=["rz", "sx", "x", "cx"], coupling_map=coupling, seed_transpiler=0
        )
        found = passes.run(to_qiskit(circuit))
        sizes[name] = {"depth": found.depth(), "two_qubit_gates": found.num_nonlocal_gates()}
    return sizes


def _title(circuit: Circuit) -> str:
    return f"{circuit.name}, n_qubits={circuit.n_qubits}, n_layers={circuit.n_layers}"


def _slots(circuit: Circuit) -> Iterator[tuple[int, ...]]:
    """Index of every angle, in row-major order."""
    return itertools.product(*map(range, circuit.angle_shape))


def _input(slot: tuple[int, ...]) -> str:
    """`theta_0_3` for the angle at [0, 3]."""
    return "_".join(["theta", *map(str, slot)])


def _checked(circuit: Circuit, angles: Any) -> NDArray[np.float64]:
    """`angles` (a tensor, an array, nested lists) as float64 of shape `circuit.angle_shape`, radians."""
    import numpy as np
    import torch

    found = torch.as_tensor(angles, dtype=torch.float64).detach().cpu().numpy()
    if found.shape != circuit.angle_shape:
        raise ConfigError(f"{_needed(circuit)}, got {found.shape}")
    if not np.isfinite(found).all():
        raise ConfigError("an angle is NaN or infinite; use a checkpoint from before the run diverged")
    return found


def _needed(circuit: Circuit) -> str:
    size = f"{circuit.n_qubits} qubits with {circuit.n_layers} layers"
    return f"{circuit.name} on {size} has angles of shape {circuit.angle_shape}"
