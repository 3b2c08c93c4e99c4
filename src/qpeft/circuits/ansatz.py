"""A circuit as data: its gates, qpeft's own circuits by name, and those that users register.

The simulator and every conversion read this description. Wire 0 is the most significant bit of a
basis index.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from itertools import chain, count, product
from math import prod
from typing import Any, NamedTuple

from qpeft.checks import check_registered, unknown
from qpeft.errors import ConfigError, QpeftError
from qpeft.user_code import errors_as

ROTATIONS = ("rx", "ry", "rz")  # the gates with an angle, on one wire
PAIRS = ("cx", "cz")  # the gates on two wires, without an angle


class Gate(NamedTuple):
    """One gate `name`: `rx`, `ry` or `rz` on one of `wires`, `cx` on (control, target), or `cz` on
    two wires.

    A rotation turns by `scale * angles[slot] + shift` radians: `slot` is an index of the angle
    tensor, and several gates may have the same. Without a slot it turns by the constant `shift`.
    """

    name: str
    wires: tuple[int, ...]
    slot: tuple[int, ...] | None = None
    scale: float = 1.0
    shift: float = 0.0


# the angles' shape, and the gates of each layer
_Circuit = tuple[tuple[int, ...], Iterable[Iterable[Gate]]]

_families: dict[str, Callable[[int, int], _Circuit]] = {}


def register_ansatz(
    name: str,
    angle_shape: Callable[[int, int], tuple[int, ...]],
    layers: Callable[[int, int], Iterable[Iterable[Gate]]],
) -> None:
    """Register a circuit of your own as `Ansatz(name, n_qubits, n_layers)`: QPA can train with it.

    `qpeft.testing.ansatz_contract` tests it. A function `layers` with the same module and qualified
    name replaces the earlier one, so a notebook cell can be run again. Adapters made before keep the
    earlier circuit.

    The gates are `rx`, `ry` and `rz` with an angle in radians, `cx` and `cz` without. The first use of a
    circuit calls the functions once for each number of qubits and layers, and raises ConfigError
    for a gate that is not valid. Their results may depend on these numbers alone: an adapter is
    refused on loading if its gates have changed.

    Args:
        name: The name in this process. It must not contain ":", the separator in `--ansatz
            FILE.py:NAME`.
        angle_shape: Maps `(n_qubits, n_layers)` to the shape of the angle tensor, a tuple.
        layers: Maps `(n_qubits, n_layers)` to the gates of each layer, in the order in which they
            act.

    Raises:
        ConfigError: The name is empty, contains ":", or belongs to another ansatz.
    """

    @wraps(layers)
    def family(n_qubits: int, n_layers: int) -> _Circuit:
        return angle_shape(n_qubits, n_layers), layers(n_qubits, n_layers)

    check_registered("ansatz", name, family, _families.get(name))
    _families[name] = family


def ansatz_names() -> tuple[str, ...]:
    """The names of all ansaetze, qpeft's first."""
    return tuple(_families)


def _ry_ladder(n_qubits: int, n_layers: int) -> _Circuit:
    ladder = [Gate("cx", (wire, wire + 1)) for wire in range(n_qubits - 1)]
    turns = (
        [Gate("ry", (wire,), (layer, wire)) for wire in range(n_qubits)]
        for layer in range(n_layers)
    )
    return (n_layers, n_qubits), [layer + ladder for layer in turns]


def two_design_pairs(n_qubits: int, start: int) -> list[tuple[int, int]]:
    """The wires of step a (start 0) or step b (start 1) of a `two_design` layer: (start, start +
    1), ...
    """
    return [(wire, wire + 1) for wire in range(start, n_qubits - 1, 2)]


def _two_design(n_qubits: int, n_layers: int) -> _Circuit:
    slots = count()
    layers = [[Gate("ry", (wire,), (next(slots),)) for wire in range(n_qubits)]]
    for _ in range(n_layers):
        gates = []
        for start in (0, 1):
            pairs = two_design_pairs(n_qubits, start)
            gates += [Gate("cz", pair) for pair in pairs]
            gates += [Gate("ry", (wire,), (next(slots),)) for wire in chain.from_iterable(pairs)]
        layers.append(gates)
    return (next(slots),), layers


def ring_pairs(n_qubits: int) -> list[tuple[int, int]]:
    """(control, target) of each CNOT of a ring, in the order in which they act; empty for a single
    qubit.
    """
    return [(wire, (wire + 1) % n_qubits) for wire in range(n_qubits if n_qubits > 1 else 0)]


# the rotations of every wire in one layer, before and behind the ring of CNOTs
_BLOCKS = {"square": (["ry", "rz"], ["ry"]), "qaa": (["ry"], []), "rxyz": (["rx", "ry", "rz"], [])}
PAIR_ANSATZE = ("mps", "all_pairs")
AMPLITUDE_ANSATZE = (*_BLOCKS, *PAIR_ANSATZE)


def _rings(name: str, n_qubits: int, n_layers: int) -> _Circuit:
    before, behind = _BLOCKS[name]
    ring = [Gate("cx", pair) for pair in ring_pairs(n_qubits)]
    n_before = n_qubits * len(before)
    layers = []
    blocks = list(enumerate(before + behind))
    for layer in range(n_layers):
        turns = [
            Gate(kind, (wire,), (layer, block, wire))
            for block, kind in blocks
            for wire in range(n_qubits)
        ]
        layers.append(turns[:n_before] + ring + turns[n_before:])
    return (n_layers, len(blocks), n_qubits), layers


def block_pairs(name: str, n_qubits: int) -> list[tuple[int, int]]:
    """The wires of each block of `mps` or `all_pairs`, in the order in which the blocks act."""
    neighbours = [(wire, wire + 1) for wire in range(n_qubits - 1)]
    if name == "mps":
        return neighbours
    every = [(wire, wire + gap) for gap in range(1, n_qubits) for wire in range(n_qubits - gap)]
    return neighbours[::2] + every


def _blocks(name: str, n_qubits: int, n_layers: int) -> _Circuit:
    if n_qubits < 2:
        raise ConfigError(
            f"ansatz {name} acts on pairs of qubits, so it needs at least 2; choose another one"
        )
    pairs = block_pairs(name, n_qubits)
    layers = []
    for (block, pair), layer in product(enumerate(pairs), range(n_layers)):
        places = product(enumerate(pair), enumerate(("rz", "ry", "rz")))
        turns = [
            Gate(kind, (wire,), (layer, block, side, turn)) for (side, wire), (turn, kind) in places
        ]
        layers.append([*turns, Gate("cx", pair), Gate("cx", pair[::-1])])
    return (n_layers, len(pairs), 2, 3), layers


_families |= {
    "ry_ladder": _ry_ladder,
    "two_design": _two_design,
    **{name: partial(_rings, name) for name in _BLOCKS},
}
_families |= {name: partial(_blocks, name) for name in PAIR_ANSATZE}
OWN_ANSATZE = tuple(_families)


@dataclass(frozen=True)
class Ansatz:
    """A parametrized circuit `name` of `n_qubits` = N wires and `n_layers` = L layers.

    `ry_ladder` and `two_design` start in `|0...0>`, or in other basis states for further columns.

    `ry_ladder` is QPA's default circuit: in each layer RY on every wire, then CNOTs 0->1, 1->2,
    ..., N-2 -> N-1 (an open ladder); its angles have shape (L, N).

    `two_design` is Quantum-PEFT's circuit, PennyLane's SimplifiedTwoDesign: RY on every wire; then
    in each layer step a on the pairs (0, 1), (2, 3), ... and step b on (1, 2), (3, 4), ...: CZ on
    every pair, then RY on both its wires. Its angles have shape ((2L+1) N - 2L,) in the order in
    which they act.

    QAA's circuits start in the state whose amplitudes are the normalized input. Each layer consists
    of blocks, which rotate every wire, and a ring of CNOTs 0->1, ..., N-2 -> N-1, N-1 -> 0 (none
    for N = 1). The angles have shape (L, blocks, N), with the blocks in the order in which they
    act:

    - `square`: RY, RZ, ring, RY
    - `qaa`: RY, ring
    - `rxyz`: RX, RY, RZ, ring; the last layer's RZ has no effect on what is measured

    Two more, QCHFT's, start in that state and consist of blocks on pairs of wires. A block has L
    layers of RZ, RY, RZ on both wires and CNOTs a->b, b->a; the angles have shape (L, pairs, 2, 3).
    They need at least two qubits.

    - `mps`: pairs (0, 1), (1, 2), ..., (N-2, N-1)
    - `all_pairs`: (0, 1), (2, 3), ...; then all pairs, (0, 1), (1, 2), ..., (0, 2), (1, 3), ...,
      (0, N-1)

    All angles are in radians.

    Raises:
        ConfigError: an unknown name, fewer than one qubit or fewer than one layer.
    """

    name: str
    n_qubits: int
    n_layers: int
    # a name can be registered again, and an adapter that is being trained keeps its circuit
    family: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in _families:
            raise ConfigError(
                f"{unknown('ansatz', self.name, _families)}. For one of your own, first import the"
                " module that registers it, or give its file on the command line with --ansatz"
                " FILE.py:NAME"
            )
        for size in ("n_qubits", "n_layers"):
            if getattr(self, size) < 1:
                raise ConfigError(f"{size} must be at least 1, got {getattr(self, size)}")
        object.__setattr__(self, "family", _families[self.name])

    def __deepcopy__(self, _: Any) -> Ansatz:
        return self

    def __reduce__(self) -> Any:
        # another process has the name, if it has imported the module that registers it
        return _of_same_gates, (self.name, self.n_qubits, self.n_layers, _digest(self))

    def __str__(self) -> str:
        return f"ansatz {self.name} with {self.n_qubits} qubits and {self.n_layers} layers"

    @property
    def angle_shape(self) -> tuple[int, ...]:
        """Shape of the angle tensor, for example (L, N) for `ry_ladder`, (L, 3, N) for `square`."""
        return _circuit(self, self.family)[0]

    @property
    def n_angles(self) -> int:
        """Number of angles."""
        return prod(self.angle_shape)

    def layers(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each layer, in the order in which they act; `two_design` begins with one of
        rotations alone.
        """
        return iter(_circuit(self, self.family)[1])

    def gates(self) -> Iterator[Gate]:
        """Every gate, in the order in which it acts."""
        return chain.from_iterable(self.layers())

    @property
    def has_shift_rule(self) -> bool:
        """Whether the parameter-shift rule applies: each angle belongs to one gate, which turns by
        this angle.
        """
        uses = Counter(gate.slot for gate in self.gates() if gate.slot is not None)
        is_used_once = max(uses.values(), default=1) == 1
        return is_used_once and all(abs(gate.scale) == 1 for gate in self.gates())

    def draw(self, width: int = 100) -> str:
        """The circuit as text, a row for each wire; rows end after `width` columns."""
        ends = {"cx": "●⊕", "cz": "●●"}  # on the two wires of a pair
        rows = [f"q{wire} ".ljust(len(f"q{self.n_qubits - 1} ")) for wire in range(self.n_qubits)]
        for gate in self.gates():
            span = range(min(gate.wires), max(gate.wires) + 1)
            start = max(len(rows[wire]) for wire in span)
            marks = dict(zip(gate.wires, ends.get(gate.name, [_box(gate)]), strict=True))
            for wire in span:
                rows[wire] = f"{rows[wire]:─<{start}}─{marks.get(wire, '┼')}─"
        longest = max(map(len, rows))
        rows = [row.ljust(longest, "─") for row in rows]
        return "\n".join(row if longest <= width else f"{row[: width - 1]}…" for row in rows)


def _digest(ansatz: Ansatz) -> str:
    """SHA-256 of the gates."""
    return hashlib.sha256(repr(list(ansatz.gates())).encode()).hexdigest()


def _of_same_gates(name: str, n_qubits: int, n_layers: int, digest: str) -> Ansatz:
    """An ansatz that was pickled, for example in a model by `torch.save`.

    Raises ConfigError if its gates have changed since, like `qpeft.load`.
    """
    ansatz = Ansatz(name, n_qubits, n_layers)
    if _digest(ansatz) != digest:
        raise ConfigError(
            f"the gates of {ansatz} have changed since the model was saved; restore its code"
        )
    return ansatz


def _box(gate: Gate) -> str:
    """`RY(θ[0,1])`, `RY(-2 θ[0,1] + 0.5)`, or `RY(0.5)`."""
    angle = f"{gate.shift:.4g}" if gate.slot is None or gate.shift else ""
    if gate.slot is not None:
        scale = "" if gate.scale == 1 else f"{gate.scale:.4g} "
        angle = f"{scale}θ[{','.join(map(str, gate.slot))}]" + (f" + {angle}" if angle else "")
    return f"{gate.name.upper()}({angle})"


@lru_cache(maxsize=256)
def _circuit(
    ansatz: Ansatz, family: Callable[[int, int], _Circuit]
) -> tuple[tuple[int, ...], tuple[tuple[Gate, ...], ...]]:
    """Shape and layers of an ansatz. Raises ConfigError if they are not valid."""
    with errors_as(f"{ansatz}: its functions raised", QpeftError):
        shape, layers = family(ansatz.n_qubits, ansatz.n_layers)
        layers = tuple(map(tuple, layers))
        again = family(ansatz.n_qubits, ansatz.n_layers)
        if (shape, layers) != (again[0], tuple(map(tuple, again[1]))):
            raise ConfigError(
                f"{ansatz}: its functions return other gates in another call; they may depend on"
                " their arguments alone, so draw what is random once, from a fixed seed"
            )
        problem = _problem(ansatz.n_qubits, shape, [*chain.from_iterable(layers)])
        if problem is not None:
            raise ConfigError(f"{ansatz}: {problem}")
    return shape, layers


_ALLOWED = (
    f"allowed are {', '.join(ROTATIONS)} with an angle and {', '.join(PAIRS)} without; compose"
    " other gates of these, for example RZZ(t) on wires a, b of cx(a, b), rz(t) on b, cx(a, b)"
)


def _problem(n_qubits: int, shape: Any, gates: list[Gate]) -> str | None:
    """What is not valid in a circuit."""
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or not shape:
        return (
            f"angle_shape returned {shape!r}; return a tuple of integers, for example (n_layers,"
            " n_qubits)"
        )
    for gate in gates:
        is_pair = gate.name in PAIRS
        if not is_pair and gate.name not in ROTATIONS:
            return f"{gate!r} is unknown; {_ALLOWED}"
        if not _is_index(gate.wires, [n_qubits] * (1 + is_pair)) or len(set(gate.wires)) <= is_pair:
            wires = "two different wires" if is_pair else "one wire"
            return f"{gate!r} needs {wires} of 0 to {n_qubits - 1}, as a tuple of integers"
        if is_pair and gate[2:] != (None, 1.0, 0.0):
            return f"{gate!r} has an angle; {_ALLOWED}"
        if gate.slot is not None and not _is_index(gate.slot, shape):
            return (
                f"{gate!r} needs as slot a tuple of integers, the index of an angle: angle_shape is"
                f" {shape}"
            )
        if not is_pair and gate.slot is None and gate.shift == 0:
            return (
                f"{gate!r} needs an angle: its index in the angle tensor as slot, or a constant as"
                " shift"
            )
    missing = {*product(*map(range, shape))} - {gate.slot for gate in gates}
    if missing:
        return (
            f"the angle {list(min(missing))} of angle_shape {shape} has no gate; make angle_shape"
            " smaller"
        )
    return None


def _is_index(values: Any, sizes: Sequence[int]) -> bool:
    """Whether this is a tuple of Python's integers: a checkpoint's hash is made of JSON, without
    NumPy's types.
    """
    is_tuple = isinstance(values, tuple) and len(values) == len(sizes)
    return is_tuple and all(
        type(i) is int and 0 <= i < size for i, size in zip(values, sizes, strict=True)
    )
