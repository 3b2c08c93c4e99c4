"""Circuits as data: which gate acts on which wires with which angle.

The simulators, the drawing and every export read this one description. Wire 0 is the most
significant bit of a basis index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import NamedTuple

from qpeft.circuits.drawing import draw
from qpeft.errors import ConfigError


class Gate(NamedTuple):
    """One gate: `ry` on one wire, or `cx` on (control, target).

    `slot` is the index of the gate's angle in the angle tensor (`angles[gate.slot]`), or None.
    """

    name: str
    wires: tuple[int, ...]
    slot: tuple[int, ...] | None = None


class _Family(NamedTuple):
    angle_shape: Callable[[int, int], tuple[int, ...]]
    layer: Callable[[int, int], Iterator[Gate]]  # (n_qubits, layer index) -> gates


def _ry_ladder_layer(n_qubits: int, layer: int) -> Iterator[Gate]:
    for wire in range(n_qubits):
        yield Gate("ry", (wire,), (layer, wire))
    for wire in range(n_qubits - 1):
        yield Gate("cx", (wire, wire + 1))


_FAMILIES = {
    "ry_ladder": _Family(angle_shape=lambda n, layers: (layers, n), layer=_ry_ladder_layer),
}


@dataclass(frozen=True)
class Ansatz:
    """A parametrised circuit that starts in `|0...0>`.

    `ry_ladder` is QPA's circuit: in each layer RY on every wire, then CNOTs 0->1, 1->2, ..., N-2 -> N-1
    (an open ladder); its angles have shape (L, N).

    Raises ConfigError for an unknown name, fewer than one qubit or fewer than one layer.
    """

    name: str
    n_qubits: int
    n_layers: int

    def __post_init__(self) -> None:
        if self.name not in _FAMILIES:
            raise ConfigError(f"unknown ansatz '{self.name}'; choose one of {', '.join(_FAMILIES)}")
        for field in ("n_qubits", "n_layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, got {getattr(self, field)}")

    @property
    def angle_shape(self) -> tuple[int, ...]:
        """Shape of the angle tensor, for `ry_ladder` (L, N)."""
        return _FAMILIES[self.name].angle_shape(self.n_qubits, self.n_layers)

    @property
    def n_angles(self) -> int:
        """Number of angles."""
        return prod(self.angle_shape)

    def layers(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each layer, in the order in which they act."""
        for layer in range(self.n_layers):
            yield tuple(_FAMILIES[self.name].layer(self.n_qubits, layer))

    def gates(self) -> Iterator[Gate]:
        """Every gate, in the order in which it acts."""
        return chain.from_iterable(self.layers())

    def draw(self, width: int = 100) -> str:
        """The circuit as text in about `width` columns; layers in the middle are left out where they do not fit."""
        return draw(self, width)


def count_angles(ansatz: str, n_qubits: int, n_layers: int) -> int:
    """Number of angles of the named ansatz, for example 56 for ("ry_ladder", 7, 8)."""
    return Ansatz(ansatz, n_qubits, n_layers).n_angles
