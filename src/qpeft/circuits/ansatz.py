"""Every ansatz by its name: qpeft's own circuits, and those that users register."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple

from qpeft.circuits import exports
from qpeft.circuits.circuit import Circuit, Gate
from qpeft.circuits.circuit_checks import check_angle_shape, check_gates
from qpeft.circuits.drawing import draw
from qpeft.errors import ConfigError, QpeftError, setting
from qpeft.names import check_name, redefines, unknown
from qpeft.user_files import errors_as, execute, is_file

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit
    from torch import Tensor


class _Family(NamedTuple):
    angle_shape: Callable[[int, int], tuple[int, ...]]
    layers: Callable[[int, int], Iterable[Iterable[Gate]]]
    probabilities: Callable[[Tensor, int, int], Tensor] | None
    checked: set[tuple[int, int]]  # numbers of qubits and layers whose gates are valid


_families: dict[str, _Family] = {}
_EVALUATIONS = 8  # of functions of a user; a random choice of two gates is missed once in 128 circuits


def register_ansatz(
    name: str,
    angle_shape: Callable[[int, int], tuple[int, ...]],
    layers: Callable[[int, int], Iterable[Iterable[Gate]]],
    probabilities: Callable[[Tensor, int, int], Tensor] | None = None,
) -> None:
    """Register a circuit of your own as `Ansatz(name, n_qubits, n_layers)`: QPA can train with it.

    `qpeft.testing.ansatz_contract` tests it. Functions with the same module and qualified names replace the earlier
    ones, so a notebook cell can be run again.

    The gates are `rx`, `ry` and `rz` with an angle, `cx` and `cz` without. Each angle belongs to exactly one gate. The
    first use of a circuit checks this, once for each number of qubits and layers, and raises ConfigError for a gate
    that is not valid, and for functions that return other gates or another shape when they are called again.

    Args:
        name: The name in this process. It must not contain ":", the separator in `--ansatz FILE.py:NAME`.
        angle_shape: Maps `(n_qubits, n_layers)` to the shape of the angle tensor, a tuple.
        layers: Maps `(n_qubits, n_layers)` to the gates of each layer, in the order in which they act.
        probabilities: A fast simulation, if there is one: maps `(angles, n_qubits, n_layers)` to the probabilities
            (2**N,) from `|0...0>`, differentiable, with the dtype and device of `angles`. Without it the rotations
            between two-qubit gates are simulated as one step.

    Raises:
        ConfigError: The name is empty, contains ":", or belongs to another ansatz.
    """
    check_name(name)
    family = _Family(angle_shape, layers, probabilities, set())
    if not all(map(redefines, family[:2], _families.get(name, family)[:2])):
        raise ConfigError(f"the name '{name}' is already registered; choose a name other than {', '.join(_families)}")
    _families[name] = family


def is_registered(name: str) -> bool:
    """Whether there is an ansatz of this name."""
    return name in _families


def named_ansatz(name: str) -> str:
    """`name`; of FILE.py:NAME the NAME, after the execution of the file, which registers it.

    For names given by a user in a call, a command or a study file; never for names in a checkpoint.

    Raises:
        ConfigError: the file does not exist, raises an error, or does not register NAME.
    """
    if name.endswith(".py"):
        raise ConfigError(f"ansatz {name}: name the ansatz that this file registers as well, {name}:NAME")
    if not is_file(name):
        return name
    execute(name, "ansatz")
    found = name.rpartition(":")[2]
    if found in OWN_ANSATZE or found not in _families:
        others = ", ".join(other for other in _families if other not in OWN_ANSATZE)
        reason = (
            "which is an ansatz of qpeft" if found in OWN_ANSATZE else f"registered are {others or 'none of your own'}"
        )
        raise ConfigError(f"ansatz {name}: the file does not register {found!r}, {reason}; name one that it registers")
    return found


def _ry_ladder(n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    for layer in range(n_layers):
        turns = [Gate("ry", (wire,), (layer, wire)) for wire in range(n_qubits)]
        yield turns + [Gate("cx", (wire, wire + 1)) for wire in range(n_qubits - 1)]


def two_design_pairs(n_qubits: int, start: int) -> list[tuple[int, int]]:
    """The wires of step a (start 0) or step b (start 1) of a `two_design` layer: (start, start + 1), ..."""
    return [(wire, wire + 1) for wire in range(start, n_qubits - 1, 2)]


def _two_design(n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    slots = count()
    yield [Gate("ry", (wire,), (next(slots),)) for wire in range(n_qubits)]
    for _ in range(n_layers):
        gates = []
        for start in (0, 1):
            pairs = two_design_pairs(n_qubits, start)
            gates += [Gate("cz", pair) for pair in pairs]
            gates += [Gate("ry", (wire,), (next(slots),)) for wire in chain.from_iterable(pairs)]
        yield gates


def _two_design_shape(n_qubits: int, n_layers: int) -> tuple[int]:
    return (n_qubits + 2 * n_layers * (n_qubits - 1),)


def ring_pairs(n_qubits: int) -> list[tuple[int, int]]:
    """(control, target) of each CNOT of a ring, in the order in which they act; empty for a single qubit."""
    return [(wire, (wire + 1) % n_qubits) for wire in range(n_qubits if n_qubits > 1 else 0)]


# the steps of one layer, in order: a rotation of every wire, or the ring of CNOTs
_AMPLITUDE_LAYERS = {
    "square": ("ry", "rz", "ring", "ry"),
    "qaa": ("ry", "ring"),
    "rxyz": ("rx", "ry", "rz", "ring"),
}
AMPLITUDE_ANSATZE = tuple(_AMPLITUDE_LAYERS)


def _n_blocks(name: str) -> int:
    return sum(step != "ring" for step in _AMPLITUDE_LAYERS[name])


def _amplitude(name: str, n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    for layer in range(n_layers):
        gates, block = [], 0
        for step in _AMPLITUDE_LAYERS[name]:
            if step == "ring":
                gates += [Gate("cx", pair) for pair in ring_pairs(n_qubits)]
            else:
                gates += [Gate(step, (wire,), (layer, block, wire)) for wire in range(n_qubits)]
                block += 1
        yield gates


def _amplitude_shape(name: str, n_qubits: int, n_layers: int) -> tuple[int, ...]:
    return (n_layers, _n_blocks(name), n_qubits)


def _efficient_su2(n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    ring = [Gate("cx", pair) for pair in ring_pairs(n_qubits)]
    if n_qubits == 2:
        ring = ring[:1]  # both pairs would be the same two wires
    for layer in range(n_layers + 1):
        turns = [
            Gate(name, (wire,), (layer, block, wire))
            for block, name in enumerate(("ry", "rz"))
            for wire in range(n_qubits)
        ]
        yield turns + (ring if layer < n_layers else [])


register_ansatz("ry_ladder", lambda n_qubits, n_layers: (n_layers, n_qubits), _ry_ladder)
register_ansatz("two_design", _two_design_shape, _two_design)
register_ansatz("efficient_su2", lambda n_qubits, n_layers: (n_layers + 1, 2, n_qubits), _efficient_su2)
for _name in AMPLITUDE_ANSATZE:
    register_ansatz(_name, partial(_amplitude_shape, _name), partial(_amplitude, _name))
OWN_ANSATZE = tuple(_families)


@dataclass(frozen=True)
class Ansatz(Circuit):
    """A parametrized circuit `name` of `n_qubits` = N wires and `n_layers` = L layers.

    `ry_ladder` and `two_design` start in `|0...0>`, or in other basis states for further columns.

    `ry_ladder` is QPA's default circuit: in each layer RY on every wire, then CNOTs 0->1, 1->2, ..., N-2 -> N-1
    (an open ladder); its angles have shape (L, N).

    `two_design` is Quantum-PEFT's circuit, PennyLane's SimplifiedTwoDesign: RY on every wire; then in each layer
    step a on the pairs (0, 1), (2, 3), ... and step b on (1, 2), (3, 4), ...: CZ on every pair, then RY on both
    its wires. Its angles have shape ((2L+1) N - 2L,) in the order in which they act.

    `efficient_su2` is the hardware-efficient circuit of Qiskit's library: RY and RZ on every wire; then in each layer
    a ring of CNOTs, and RY and RZ on every wire again. Its angles have shape (L+1, 2, N).

    QAA's circuits start in the state whose amplitudes are the normalized input. Each layer consists of blocks, which
    rotate every wire, and a ring of CNOTs 0->1, ..., N-2 -> N-1, N-1 -> 0 (none for N = 1). The angles have
    shape (L, blocks, N), with the blocks in the order in which they act:

    - `square`: RY, RZ, ring, RY
    - `qaa`: RY, ring
    - `rxyz`: RX, RY, RZ, ring; the last layer's RZ has no effect on what is measured, see `dead_angles`

    `register_ansatz` adds circuits of your own.

    Raises ConfigError for an unknown name, fewer than one qubit or fewer than one layer.
    """

    def __post_init__(self) -> None:
        if not is_registered(self.name):
            raise ConfigError(
                f"{unknown('ansatz', self.name, _families)}. For one of your own, first import the module that "
                "registers it, or give its file on the command line with --ansatz FILE.py:NAME"
            )
        for field in ("n_qubits", "n_layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{setting(field)} must be at least 1, got {getattr(self, field)}")

    @property
    def angle_shape(self) -> tuple[int, ...]:
        """Shape of the angle tensor, for example (L, N) for `ry_ladder`, (L, 3, N) for `square`."""
        family = _families[self.name]
        if self.name in OWN_ANSATZE:
            return family.angle_shape(self.n_qubits, self.n_layers)
        with errors_as(f"{_title(self)}: angle_shape({self.n_qubits}, {self.n_layers}) raised", QpeftError):
            shape = family.angle_shape(self.n_qubits, self.n_layers)
        check_angle_shape(_title(self), shape)
        return shape

    def layers(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each layer, in the order in which they act.

        `two_design` and `efficient_su2` have one layer of rotations more, which is the first or the last one here.
        """
        check_circuit(self)
        yield from map(tuple, _families[self.name].layers(self.n_qubits, self.n_layers))

    def draw(self, width: int = 100) -> str:
        """The circuit as text in about `width` columns; layers in the middle are omitted where they do not fit."""
        return draw(self, width)

    def to_pennylane(self) -> Callable[..., None]:
        """A function `circuit(angles, wires=None)` that queues the gates, without measurement, inside a QNode.

        `angles` have shape `angle_shape`, or `(B, *angle_shape)` for B circuits at once, in any of PennyLane's
        interfaces; `wires` are N labels, 0 to N-1 by default. `qml.probs(wires)` then has wire 0 as the most
        significant bit, as everywhere in qpeft.

        Raises ConfigError if PennyLane is missing; `circuit` raises it for angles of another shape or a wrong number
        of wires.
        """
        return exports.to_pennylane(self)

    def to_qiskit(self, angles: Any = None) -> QuantumCircuit:
        """The circuit in Qiskit, without measurement.

        Wire i is qubit i: the most significant bit in qpeft, the least significant bit in Qiskit.

        Args:
            angles: Radians, of shape `angle_shape`. None: the free parameters of a ParameterVector "theta", whose
                element k is the angle with index k in the flattened (row-major) angle tensor.

        Raises ConfigError if Qiskit is missing, or for angles of another shape.
        """
        return exports.to_qiskit(self, angles)

    def to_openqasm(self, angles: Any = None) -> str:
        """The circuit as OpenQASM 3 text, without measurement; wire i is `q[i]`.

        Args:
            angles: Radians, of shape `angle_shape`. None: `input float[64] theta_0_3;` for the angle at [0, 3].

        Raises ConfigError for angles of another shape.
        """
        return exports.to_openqasm(self, angles)


def dead_angles(ansatz: str, n_qubits: int, n_layers: int = 1) -> int:
    """Number of angles of `ansatz` with `n_qubits` and `n_layers` without effect on expectations and probabilities.

    N for `rxyz` and `efficient_su2`, whose last RZ block changes only phases, which no later gate turns into
    probabilities; 0 for qpeft's others. Raises ConfigError as `Ansatz`.
    """
    return Ansatz(ansatz, n_qubits, n_layers).n_qubits if ansatz in ("rxyz", "efficient_su2") else 0


def check_circuit(ansatz: Ansatz) -> None:
    """Raise ConfigError unless angles and gates of an ansatz of a user are valid; nothing for one of qpeft.

    The gates of each number of qubits and layers are checked once.
    """
    size = ansatz.n_qubits, ansatz.n_layers
    if ansatz.name in OWN_ANSATZE or size in _families[ansatz.name].checked:
        return
    family, shape = _families[ansatz.name], ansatz.angle_shape
    with errors_as(f"{_title(ansatz)}: layers{size} raised", QpeftError):
        check_gates(_title(ansatz), ansatz.n_qubits, shape, family.layers(*size))
        found = {(ansatz.angle_shape, *map(tuple, family.layers(*size))) for _ in range(_EVALUATIONS)}
    if len(found) > 1:
        raise ConfigError(
            f"{_title(ansatz)}: angle_shape or layers returns something else when it is called again, so an adapter "
            "could not be loaded; let the result depend on the numbers of qubits and layers alone, without random "
            "choices, counters or other state"
        )
    family.checked.add(size)


def _title(ansatz: Ansatz) -> str:
    return f"ansatz {ansatz.name} with {ansatz.n_qubits} qubits and {ansatz.n_layers} layers"


def definition(ansatz: Ansatz) -> Callable[..., Any]:
    """The function of the ansatz' gates, which is another one after its name is registered again."""
    return _families[ansatz.name].layers


def fast_probabilities(ansatz: Ansatz) -> Callable[[Tensor, int, int], Tensor] | None:
    """The fast simulation with which the ansatz was registered."""
    return _families[ansatz.name].probabilities
