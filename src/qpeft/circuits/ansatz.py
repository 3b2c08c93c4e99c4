"""Circuits as data: which gate acts on which wires with which angle.

The simulators, the drawing and every export read this one description. Wire 0 is the most
significant bit of a basis index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from qpeft.circuits.drawing import draw
from qpeft.circuits.to_openqasm import to_openqasm
from qpeft.circuits.to_pennylane import to_pennylane
from qpeft.circuits.to_qiskit import to_qiskit
from qpeft.errors import ConfigError
from qpeft.names import check_name, redefines

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit


class Gate(NamedTuple):
    """One gate, `name`: `rx`, `ry` or `rz` on one of `wires`, `cx` on (control, target), or `cz` on two.

    `slot` is the index of the gate's angle in the angle tensor (`angles[gate.slot]`), or None.
    """

    name: str
    wires: tuple[int, ...]
    slot: tuple[int, ...] | None = None


class _Family(NamedTuple):
    angle_shape: Callable[[int, int], tuple[int, ...]]
    layers: Callable[[int, int], Iterable[Iterable[Gate]]]


_families: dict[str, _Family] = {}


def register_ansatz(
    name: str,
    angle_shape: Callable[[int, int], tuple[int, ...]],
    layers: Callable[[int, int], Iterable[Iterable[Gate]]],
) -> None:
    """Make `Ansatz(name, n_qubits, n_layers)` a circuit of your own: drawn, counted and exported like all others.

    Args:
        name: What it is called from now on, in this process. Without ":", as `--ansatz FILE.py:NAME` has it.
        angle_shape: From `(n_qubits, n_layers)` to the shape of the angle tensor.
        layers: From `(n_qubits, n_layers)` to the gates of each layer, in the order in which they act. Each angle is
            that of one gate.

    `qpeft.testing.ansatz_contract` checks what it owes its users.

    Functions of the same module and qualified names replace the earlier ones: a notebook's cell can be run again.

    Raises:
        ConfigError: another ansatz has this name, or it is none.
    """
    check_name(name)
    family = _Family(angle_shape, layers)
    if not all(map(redefines, family, _families.get(name, family))):
        raise ConfigError(f"there is an ansatz '{name}' already; choose another name than {', '.join(_families)}")
    _families[name] = family


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
    """Controls and targets of a ring of CNOTs in the order in which they act; none for a single qubit."""
    return [(wire, (wire + 1) % n_qubits) for wire in range(n_qubits if n_qubits > 1 else 0)]


# what one layer does, in order: a rotation of every wire, or the ring
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


register_ansatz("ry_ladder", lambda n_qubits, n_layers: (n_layers, n_qubits), _ry_ladder)
register_ansatz("two_design", _two_design_shape, _two_design)
for _name in AMPLITUDE_ANSATZE:
    register_ansatz(_name, partial(_amplitude_shape, _name), partial(_amplitude, _name))


@dataclass(frozen=True)
class Ansatz:
    """A parametrised circuit `name` of `n_qubits` = N wires and `n_layers` = L layers.

    The first two start in `|0...0>` (or, for more columns, in other basis states).

    `ry_ladder` is QPA's circuit: in each layer RY on every wire, then CNOTs 0->1, 1->2, ..., N-2 -> N-1
    (an open ladder); its angles have shape (L, N).

    `two_design` is Quantum-PEFT's circuit, PennyLane's SimplifiedTwoDesign: RY on every wire; then in each layer
    step a on the pairs (0, 1), (2, 3), ... and step b on (1, 2), (3, 4), ...: CZ on every pair, then RY on both
    its wires. Its angles have shape ((2L+1) N - 2L,) in the order in which they act.

    QAA's circuits start in a state whose amplitudes are the normalised input. Each of their layers is made of blocks,
    which turn every wire, and a ring of CNOTs 0->1, ..., N-2 -> N-1, N-1 -> 0 (none for N = 1); the angles have
    shape (L, blocks, N), blocks in the order in which they act:

    - `square`: RY, RZ, ring, RY
    - `qaa`: RY, ring
    - `rxyz`: RX, RY, RZ, ring; what is read cannot see the last layer's RZ, see `dead_angles`

    `register_ansatz` adds circuits of your own.

    Raises ConfigError for an unknown name, fewer than one qubit or fewer than one layer.
    """

    name: str
    n_qubits: int
    n_layers: int

    def __post_init__(self) -> None:
        if self.name not in _families:
            raise ConfigError(f"unknown ansatz '{self.name}'; choose one of {', '.join(_families)}")
        for field in ("n_qubits", "n_layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, got {getattr(self, field)}")

    @property
    def angle_shape(self) -> tuple[int, ...]:
        """Shape of the angle tensor, for example (L, N) for `ry_ladder`, (L, 3, N) for `square`."""
        return _families[self.name].angle_shape(self.n_qubits, self.n_layers)

    @property
    def n_angles(self) -> int:
        """Number of angles."""
        return prod(self.angle_shape)

    @property
    def depth(self) -> int:
        """Gates on the longest way through the circuit."""
        passed = [0] * self.n_qubits  # gates on the longest way to each wire
        for gate in self.gates():
            step = 1 + max(passed[wire] for wire in gate.wires)
            for wire in gate.wires:
                passed[wire] = step
        return max(passed)

    def layers(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each layer, in the order in which they act; `two_design` has its first rotations as layer 0."""
        yield from map(tuple, _families[self.name].layers(self.n_qubits, self.n_layers))

    def gates(self) -> Iterator[Gate]:
        """Every gate, in the order in which it acts."""
        return chain.from_iterable(self.layers())

    def draw(self, width: int = 100) -> str:
        """The circuit as text in about `width` columns; layers in the middle are left out where they do not fit."""
        return draw(self, width)

    def to_pennylane(self) -> Callable[..., None]:
        """A function `circuit(angles, wires=None)` that queues the gates, without measurement, inside a QNode.

        `angles` have shape `angle_shape`, or `(B, *angle_shape)` for B circuits at once, in any of PennyLane's
        interfaces; `wires` are N labels, 0 to N-1 by default. `qml.probs(wires)` then has wire 0 as the most
        significant bit, as everything in qpeft.

        Raises ConfigError if PennyLane is missing, and in `circuit` for angles of another shape or too few wires.
        """
        return to_pennylane(self)

    def to_qiskit(self, angles: Any = None) -> QuantumCircuit:
        """The circuit in Qiskit, without measurement.

        Wire i is qubit i: the most significant bit here, the least significant one in Qiskit.

        Args:
            angles: Radians, of shape `angle_shape`. None: the free parameters of a ParameterVector "theta", whose
                element k is the angle with index k in the flattened (row-major) angle tensor.

        Raises ConfigError if Qiskit is missing, or for angles of another shape.
        """
        return to_qiskit(self, angles)

    def to_openqasm(self, angles: Any = None) -> str:
        """The circuit as OpenQASM 3 text, without measurement; wire i is `q[i]`.

        Args:
            angles: Radians, of shape `angle_shape`. None: `input float[64] theta_0_3;` for the angle at [0, 3].

        Raises ConfigError for angles of another shape.
        """
        return to_openqasm(self, angles)


def count_angles(ansatz: str, n_qubits: int | None = None, n_layers: int = 1, *, width: int | None = None) -> int:
    """Number of angles of the `ansatz`: a circuit by its qubits, or a construction for any width by its rows.

    For example 56 for ("ry_ladder", 7, 8), 46 for ("two_design", 10, 2), 30 for ("square", 10) and 127 for
    ("qsd", n_layers=2, width=768).
    Constructions are `auto`, `qsd`, `qsd_full` and `pad`; a `two_design` on no qubits has no angles.

    Raises ConfigError for an unknown name, a size below 1, and for both or neither of n_qubits and width.
    """
    if width is not None and n_qubits is None:
        from qpeft.circuits.orthogonal import count_orthogonal  # which counts circuits with this function

        return count_orthogonal(width, n_layers, ansatz)
    if n_qubits is None or width is not None:
        raise ConfigError(f"count '{ansatz}' either by n_qubits or by width, got n_qubits={n_qubits}, width={width}")
    empty = ansatz == "two_design" and n_qubits == 0  # the 1 x 1 matrix [1]
    circuit = Ansatz(ansatz, 1 if empty else n_qubits, n_layers)
    return 0 if empty else circuit.n_angles


def dead_angles(ansatz: str, n_qubits: int, n_layers: int = 1) -> int:
    """Number of angles without any effect on what is read of `Ansatz(ansatz, n_qubits, n_layers)`.

    N for `rxyz`, whose last RZ block changes phases that no expectation or probability sees behind a ring;
    0 for all others. Raises ConfigError as `Ansatz`.
    """
    return Ansatz(ansatz, n_qubits, n_layers).n_qubits if ansatz == "rxyz" else 0
