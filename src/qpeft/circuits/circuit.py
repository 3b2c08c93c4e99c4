"""A circuit as data: which gate acts on which wires with which angle.

The simulators, the drawing and every export read this description. Wire 0 is the most significant bit of a basis
index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import NamedTuple

ROTATIONS = ("rx", "ry", "rz")  # the gates with an angle, on one wire
PAIRS = ("cx", "cz")  # the gates on two wires, without an angle


class Gate(NamedTuple):
    """One gate `name`: `rx`, `ry` or `rz` on one of `wires`, `cx` on (control, target), or `cz` on two wires.

    `slot` is the index of the gate's angle in the angle tensor (`angles[gate.slot]`), or None for `cx` and `cz`. Each
    angle belongs to exactly one gate.
    """

    name: str
    wires: tuple[int, ...]
    slot: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Circuit:
    """A parametrized circuit of `n_qubits` = N wires and `n_layers` = L layers; `Ansatz` defines its gates."""

    name: str
    n_qubits: int
    n_layers: int

    @property
    def angle_shape(self) -> tuple[int, ...]:
        """Shape of the angle tensor, for example (L, N) for `ry_ladder`, (L, 3, N) for `square`."""
        raise NotImplementedError

    def layers(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each layer, in the order in which they act."""
        raise NotImplementedError

    def gates(self) -> Iterator[Gate]:
        """Every gate, in the order in which it acts."""
        return chain.from_iterable(self.layers())

    @property
    def n_angles(self) -> int:
        """Number of angles."""
        return prod(self.angle_shape)

    @property
    def depth(self) -> int:
        """Number of gates on the longest path through the circuit."""
        passed = [0] * self.n_qubits  # gates on the longest path to each wire
        for gate in self.gates():
            step = 1 + max(passed[wire] for wire in gate.wires)
            for wire in gate.wires:
                passed[wire] = step
        return max(passed)
