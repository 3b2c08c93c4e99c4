"""Circuits to and from other programs: OpenQASM 3, PennyLane and Qiskit.

On the way in, the tool's own decompositions reach the gates rx, ry, rz, cx and cz; global phases
are dropped. An angle may be any multiple of one parameter plus a constant, and several gates may
use one parameter.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz, Gate, ansatz_names, register_ansatz
from qpeft.circuits.numerics import check_tensor
from qpeft.errors import ConfigError, QpeftWarning, needs
from qpeft.quiet import quiet
from qpeft.user_code import errors_as

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit

_AFFINE = "has an angle that is not a multiple of one parameter plus a constant"
PENNYLANE_GATES = {"rx": "RX", "ry": "RY", "rz": "RZ", "cx": "CNOT", "cz": "CZ"}

_OPENQASM = """\
OPENQASM 3.0;
include "stdgates.inc";
// {ansatz}, angles in radians
// q[0] is the most significant bit of a basis index
{inputs}qubit[{ansatz.n_qubits}] q;
"""


def to_openqasm(ansatz: Ansatz, angles: Any = None) -> str:
    """The circuit as OpenQASM 3 text, without measurement; wire i is `q[i]`.

    Args:
        ansatz: The circuit.
        angles: Radians, of shape `ansatz.angle_shape`. None: `input float[64] theta_0_3;` for the
            angle at [0, 3].

    Raises ConfigError for angles of another shape.
    """
    on_cpu = angles.detach().cpu() if isinstance(angles, Tensor) else angles  # some have no float64
    values = None if angles is None else torch.as_tensor(on_cpu, dtype=torch.float64)
    if values is not None:
        check_tensor(values, ansatz.angle_shape, str(ansatz), batched=False)
    slots = itertools.product(*map(range, ansatz.angle_shape)) if values is None else ()
    names = {slot: "_".join(["theta", *map(str, slot)]) for slot in slots}
    inputs = "".join(f"input float[64] {name};\n" for name in names.values())
    text = _OPENQASM.format(ansatz=ansatz, inputs=inputs)
    for gate in ansatz.gates():
        angle = ""
        if gate.slot in names:
            scale = "" if gate.scale == 1 else f"{gate.scale!r} * "
            angle = f"({scale}{names[gate.slot]}{f' + {gate.shift!r}' if gate.shift else ''})"
        elif len(gate.wires) == 1:
            angle = f"({float(_angle(gate, values))!r})"
        text += f"{gate.name}{angle} {', '.join(f'q[{wire}]' for wire in gate.wires)};\n"
    return text


def to_pennylane(ansatz: Ansatz) -> Callable[..., None]:
    """A function `circuit(angles, wires=None)` that queues the gates, without measurement, inside a
    QNode.

    `angles` have shape `ansatz.angle_shape`, or `(B, *angle_shape)` for B circuits at once, in any
    of PennyLane's interfaces; `wires` are N labels, 0 to N-1 by default. `qml.probs(wires)` then
    has wire 0 as the most significant bit, as everywhere in qpeft.

    Raises ConfigError if PennyLane is missing; `circuit` raises it for angles of another shape or a
    wrong number of wires.
    """
    with needs("to_pennylane", "PennyLane"):
        import pennylane as qml
    kinds = {name: getattr(qml, kind) for name, kind in PENNYLANE_GATES.items()}

    def queue(angles: Any, wires: Sequence[Any] | None = None) -> None:
        given = tuple(angles.shape)
        shape = ansatz.angle_shape
        labels = list(range(ansatz.n_qubits) if wires is None else wires)
        if (
            given[-len(shape) :] != shape
            or len(given) > len(shape) + 1
            or len(labels) != ansatz.n_qubits
        ):
            raise ConfigError(
                f"{ansatz} has angles of shape {shape}, or (B, *shape) for B circuits at once, and"
                f" as many wires as qubits; got angles of shape {given} and {len(labels)} wires"
            )
        for gate in ansatz.gates():
            angle = () if len(gate.wires) == 2 else (_angle(gate, angles),)  # shape () or (B,)
            kinds[gate.name](*angle, wires=[labels[wire] for wire in gate.wires])

    return queue


def to_qiskit(ansatz: Ansatz) -> QuantumCircuit:
    """The circuit of `ansatz` in Qiskit, without measurement; its angles, in radians, are a
    ParameterVector "theta".

    Element k of theta is the angle with index k in the flattened (row-major) angle tensor. Wire i
    is qubit i: the most significant bit in qpeft, the least significant bit in Qiskit.

    Raises ConfigError if Qiskit is missing.
    """
    with needs("to_qiskit", "Qiskit"):
        from qiskit.circuit import ParameterVector, QuantumCircuit
    import numpy as np

    theta: Any = ParameterVector("theta", ansatz.n_angles)
    array = np.array(list(theta), dtype=object).reshape(ansatz.angle_shape)
    made = QuantumCircuit(ansatz.n_qubits, name=ansatz.name)
    for gate in ansatz.gates():
        angle = () if len(gate.wires) == 2 else (np.asarray(_angle(gate, array)).item(),)
        getattr(made, gate.name)(*angle, *gate.wires)
    return made


def from_pennylane(circuit: Any, shape: tuple[int, ...] | None = None) -> Ansatz:
    """An ansatz from a QNode, a function that queues gates, or a tape (QuantumScript).

    The wires are those of the QNode's device, otherwise those of the gates; integers in ascending
    order. Whatever it measures, the probabilities of all basis states are used; a QpeftWarning names
    measurements of something else, and the QNode's transforms, which are not applied.

    Args:
        circuit: A QNode or function with one argument, the array of all trained angles, in radians.
            The angles of a tape are its trainable parameters, flat and in their order.
        shape: Of this argument; not for a tape.

    Raises:
        ConfigError: PennyLane is missing, the circuit fails, its gates depend on the angles, or a
            gate cannot be expressed; the message names it.
    """
    with needs("from_pennylane", "PennyLane"):
        import pennylane as qml
        from pennylane.measurements import ProbabilityMP
        from pennylane.tape import QuantumScript, make_qscript
        from pennylane.transforms import decompose

    function = circuit.func if isinstance(circuit, qml.QNode) else circuit
    make_tape = make_qscript(function)
    if isinstance(circuit, QuantumScript):
        shapes = [torch.as_tensor(value).shape for value in circuit.get_parameters()]
        sizes = [each.numel() for each in shapes]
        shape = (sum(sizes),)

        def make_tape(angles: Tensor) -> Any:
            parts = zip(angles.split(sizes), shapes, strict=True)
            parameters: Any = [part.view(each) for part, each in parts]
            return circuit.bind_new_parameters(parameters, circuit.trainable_params)

    if not shape or any(size < 1 for size in shape):
        raise ConfigError(
            "from_pennylane needs the shape of the circuit's argument, for example"
            f" shape=(n_layers, 4); got {shape}"
        )
    names = {kind: name for name, kind in PENNYLANE_GATES.items()}
    classes: Any = {kind: getattr(qml, kind) for kind in ("GlobalPhase", "Barrier", *names)}
    gate_set = {"GlobalPhase", *names}

    def operations_at(angles: Tensor) -> list[Any]:
        # gates that do not decompose are refused here
        with quiet("pennylane"):
            tapes: Any = decompose(  # pyright: ignore
                make_tape(angles.view(shape)), gate_set=gate_set
            )[0]
        for operation in tapes[0].operations:
            if operation.name in classes and not isinstance(operation, classes[operation.name]):
                raise ConfigError(
                    f"the circuit has an operation of its own with the name of PennyLane's gate"
                    f" {operation.name}; give it another name"
                )
        operations = [
            operation
            for operation in tapes[0].operations
            if operation.name not in ("GlobalPhase", "Barrier")
        ]
        for operation in operations:
            if operation.name not in names:
                raise ConfigError(
                    f"{operation.name} does not decompose to rotations, CNOT and CZ; remove"
                    " measurements inside the circuit, and noise"
                )
        return operations

    def turns_at(angles: Tensor) -> Tensor:
        turns = [(*operation.data, 0.0)[0] for operation in operations_at(angles)]
        return torch.stack([torch.as_tensor(turn, dtype=torch.float64) for turn in turns])

    slots = list(itertools.product(*map(range, shape)))
    # turns in both directions, so that |t|, clip(t) or t % 1 is noticed
    points = 6 * torch.randn(
        9, len(slots), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    angles = points[0]
    with errors_as(f"from_pennylane: the circuit fails with angles of shape {shape}:", ConfigError):
        _refuse_inputs(function)
        tape = make_tape(angles.view(shape))
        calls = [*map(operations_at, points)]
        if len({str([(each.name, each.wires) for each in operations]) for operations in calls}) > 1:
            raise ConfigError(
                "the circuit has other gates at other angles, or in another call; give one whose"
                " gates are fixed"
            )
        slopes: Any = torch.autograd.functional.jacobian(turns_at, angles)  # (gates, angles)
        turns = torch.stack([*map(turns_at, points)])  # (points, gates)
        shifts = turns[0] - slopes @ angles
        errors = (points @ slopes.mT + shifts - turns).abs().amax(0)
    labels = list(getattr(circuit, "device", tape).wires or tape.wires)
    if all(isinstance(label, int) for label in labels):
        labels.sort()
    of_device = list(getattr(getattr(circuit, "device", None), "wires", None) or ())
    unused = [
        str(measured)
        for measured in [*tape.measurements, *getattr(circuit, "compile_pipeline", ())]
        if not isinstance(measured, ProbabilityMP)
        or measured.obs is not None
        or (list(measured.wires) or of_device or labels) != labels
    ]
    unused += _of_device(circuit)
    if unused:
        warnings.warn(
            QpeftWarning(
                f"the circuit has {', '.join(unused)}, which is not used: its features are the"
                f" probabilities of all basis states, qml.probs({labels}), without transforms"
            ),
            stacklevel=2,
        )
    gates = []
    for operation, slope, shift, error in zip(
        calls[0], slopes, shifts.tolist(), errors, strict=True
    ):
        used = slope.nonzero().flatten().tolist()
        if len(used) > 1 or error > 1e-9:
            raise ConfigError(f"{operation} {_AFFINE}")
        angle = (
            (slots[used[0]], slope[used[0]].item(), round(shift, 12) + 0.0)
            if used
            else (None, 1.0, shift)
        )
        gates.append(Gate(names[operation.name], tuple(map(labels.index, operation.wires)), *angle))
    if not any(gate.slot for gate in gates):
        raise ConfigError(
            "the circuit has no parameters: no gate turns by an element of its argument. A QNode"
            " that a function calls queues no gates in it; call qnode.func"
        )
    return fixed_ansatz("pennylane", len(labels), shape, gates)


def _of_device(circuit: Any) -> list[str]:
    """What a QNode takes from its device, and an ansatz does not: noise, other transforms, shots."""
    found = []
    device: Any = getattr(circuit, "device", None)
    if getattr(device, "readout_err", None):
        found.append(f"readout_prob={device.readout_err} of its device")
    while (inner := getattr(device, "_original_device", None)) is not None:
        found.append(f"{device.transform} of its device")
        device = inner
    counts = (
        getattr(getattr(each, "shots", None), "total_shots", None) for each in (circuit, device)
    )
    found += [f"shots={count} (see qpeft.set_backend)" for count in dict.fromkeys(counts) if count]
    return found


def _refuse_inputs(function: Any) -> None:
    """Raise ConfigError if a circuit needs more than its angles, such as data."""
    if not callable(function):
        return
    needed = [
        each.name
        for each in signature(function).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ConfigError(
            f"the circuit needs {', '.join(needed)}; give one whose only argument is the array of"
            " its angles, with constants in place of the others"
        )


def from_qiskit(circuit: QuantumCircuit, parameters: Sequence[Any] | None = None) -> Ansatz:
    """An ansatz from a QuantumCircuit; wire i is qubit i. Final measurements, barriers and delays
    are dropped.

    Wire i of a circuit that Qiskit has transpiled to the qubits of a device is qubit i of the
    circuit before, wherever routing has moved it.

    Args:
        circuit: The circuit.
        parameters: Its parameters in the order of the angles, in radians; `circuit.parameters` by
            default.

    Raises:
        ConfigError: Qiskit is missing, `parameters` are not those of the circuit, or a gate cannot
            be expressed; the message names it.
    """
    with needs("from_qiskit", "Qiskit"):
        from qiskit import QiskitError, transpile
    order = list(circuit.parameters if parameters is None else parameters)
    if len(order) != circuit.num_parameters or {*order} != {*circuit.parameters}:
        raise ConfigError(
            f"the circuit has the parameters {[*circuit.parameters]}, got {order}; give each of"
            " circuit.parameters once"
        )
    try:
        _refuse_renamed(circuit)  # before final barriers are removed, by their name
        bare: Any = circuit.remove_final_measurements(inplace=False)
        _refuse_approximated(bare)
        decomposed = transpile(bare, basis_gates=[*PENNYLANE_GATES], optimization_level=0)
    except (QiskitError, AttributeError) as error:  # the latter of a synthesis by MatrixExponential
        raise ConfigError(
            f"Qiskit cannot decompose the circuit to rx, ry, rz, cx and cz: {error}"
        ) from error
    gates = []
    for instruction in decomposed.data:
        if instruction.name in ("barrier", "delay"):
            continue
        if instruction.name not in PENNYLANE_GATES:
            raise ConfigError(
                f"{instruction.name} is no gate; remove measurements and resets inside the circuit"
            )
        slot = None
        scale = 1.0
        shift = 0.0
        for value in instruction.params:  # at most one
            used = list(getattr(value, "parameters", ()))
            try:
                scale: Any = value.gradient(used[0]) if used else 1.0
            except RuntimeError:  # of a function without a derivative
                scale = value
            if len(used) > 1 or getattr(scale, "parameters", ()):
                raise ConfigError(f"{instruction.name}({value}) {_AFFINE}")
            slot, shift = (
                ((order.index(used[0]),), value.bind({used[0]: 0})) if used else (None, value)
            )
        wires = tuple(decomposed.find_bit(qubit).index for qubit in instruction.qubits)
        gates.append(Gate(instruction.name, wires, slot, float(scale), float(shift)))
    if circuit.layout is None:
        return fixed_ansatz("qiskit", circuit.num_qubits, (len(order),), gates)
    # where the qubits of the circuit before transpiling are at the end
    places = circuit.layout.final_index_layout(filter_ancillas=True)
    if used := {wire for gate in gates for wire in gate.wires} - {*places}:
        raise ConfigError(
            f"the transpiled circuit also acts on qubits {sorted(used)}, which the circuit before"
            " did not have; give the circuit before transpiling, or a coupling map of its size"
        )
    gates = [gate._replace(wires=tuple(map(places.index, gate.wires))) for gate in gates]
    return fixed_ansatz("qiskit", len(places), (len(order),), gates)


def _refuse_renamed(circuit: Any) -> None:
    """Raise ConfigError for an operation of the user's own with the name of a gate, also inside of
    another one: Qiskit's transpiler goes by names, and would not decompose it.
    """
    from qiskit.circuit import Delay, library

    own = library.RXGate, library.RYGate, library.RZGate, library.CXGate, library.CZGate
    kinds = dict(zip(PENNYLANE_GATES, own, strict=True))
    kinds |= {"barrier": library.Barrier, "delay": Delay}
    left = [instruction.operation for instruction in circuit.data]
    while left:
        operation = left.pop()
        operation = getattr(operation, "base_op", operation)  # of one with modifiers
        kind = kinds.get(operation.name)
        if kind is not None and not isinstance(operation, kind):
            raise ConfigError(
                f"the circuit has an operation of its own with the name of Qiskit's gate"
                f" {operation.name}; give it another name"
            )
        module = getattr(operation, "base_class", type(operation)).__module__
        if not module.startswith(library.__name__):  # whose parts are Qiskit's own
            definition = getattr(operation, "definition", None)
            left += [instruction.operation for instruction in definition.data] if definition else []


def _refuse_approximated(circuit: Any) -> None:
    """Raise ConfigError for an evolution exp(-itH), in place of which Qiskit runs another operation:
    a product of the terms of H, which differs if they do not commute, or are drawn.
    """
    from qiskit.circuit.library import PauliEvolutionGate
    from qiskit.quantum_info import SparseObservable, SparsePauliOp
    from qiskit.synthesis import QDrift

    for instruction in circuit.data:
        gate = getattr(instruction.operation, "base_op", instruction.operation)
        if not isinstance(gate, PauliEvolutionGate):
            # those of Qiskit's own library are exact
            kind = getattr(gate, "base_class", type(gate))
            is_own = not kind.__module__.startswith("qiskit.circuit.library")
            definition = getattr(gate, "definition", None) if is_own else None
            if definition is not None:
                _refuse_approximated(definition)
            continue
        sums: Any = gate.operator if isinstance(gate.operator, list) else [gate.operator]
        paulis = [
            SparsePauliOp.from_sparse_observable(each)
            if isinstance(each, SparseObservable)
            else each
            for each in sums
        ]
        n_groups = len(SparsePauliOp.sum(paulis).group_commuting())
        if n_groups > 1 or isinstance(gate.synthesis, QDrift):
            raise ConfigError(
                f"{gate.label} is an exact evolution, in place of which Qiskit runs a product of its"
                " terms, another operation; append the `definition` of the gate if you mean that"
            )


def from_openqasm(text: str) -> Ansatz:
    """An ansatz from OpenQASM 3 or 2; its angles, in radians, are the `input` variables, in
    the order of their declarations.

    Raises ConfigError if Qiskit or its reader is missing, the text cannot be read, or a gate cannot
    be expressed.
    """
    with needs("from_openqasm", "Qiskit"):
        from qiskit import qasm2, qasm3
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)  # without comments
    # also for a missing qiskit-qasm3-import, with the command that installs it
    title = (
        "from_openqasm: Qiskit cannot read the text (a loop's variable cannot be the index of a qubit,"
        " so unroll the loop; an input cannot have the name of a gate):"
    )
    with errors_as(title):
        circuit = qasm2.loads(text) if re.search(r"OPENQASM\s+2", code) else qasm3.loads(text)
    order = re.findall(r"\binput\s[^;]*?(\w+)\s*;", code)
    return from_qiskit(
        circuit, sorted(circuit.parameters, key=lambda parameter: order.index(parameter.name))
    )


def fixed_ansatz(tool: str, n_qubits: int, shape: tuple[int, ...], gates: list[Gate]) -> Ansatz:
    """The ansatz of a circuit of one size, under a name made of its gates."""
    # a rotation by 0 is none
    gates = [gate for gate in gates if len(gate.wires) == 2 or gate.slot or gate.shift]
    name = f"{tool}-{sha256(repr((n_qubits, shape, gates)).encode()).hexdigest()[:12]}"

    def angle_shape(*size: int) -> Any:
        if size != (n_qubits, 1):
            raise ConfigError(
                f"ansatz {name} is one circuit, with n_qubits={n_qubits} and n_layers=1, not {size}"
            )
        return shape

    if name not in ansatz_names():
        register_ansatz(name, angle_shape, lambda *_: [gates])
    return Ansatz(name, n_qubits, 1)


def _angle(gate: Gate, angles: Any) -> Any:
    """The angle of a rotation, from an array, a tensor or Qiskit's parameters; (B,) of (B,
    *angle_shape).
    """
    if gate.slot is None:
        return gate.shift
    angle = angles[(..., *gate.slot)]
    return angle if gate[3:] == (1, 0) else gate.scale * angle + gate.shift
