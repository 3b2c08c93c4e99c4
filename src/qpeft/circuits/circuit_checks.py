"""Checks of a circuit that is given as data: the shape of its angles, and its gates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NoReturn

from qpeft.circuits.circuit import PAIRS, ROTATIONS, Gate
from qpeft.errors import ConfigError

_ALLOWED = f"allowed are {', '.join(ROTATIONS)} with an angle and {', '.join(PAIRS)} without"
_COMPOSE = "compose other gates of these, for example RZZ(t) on wires a, b of cx(a, b), rz(t) on b, cx(a, b)"


def check_angle_shape(ansatz: str, shape: Any) -> None:
    """Raise ConfigError unless `shape` is a tuple of at least one integer, none negative."""
    if not isinstance(shape, tuple) or not shape or not _are_integers(shape) or min(shape) < 0:
        raise ConfigError(
            f"{ansatz}: angle_shape returned {shape!r}; return a tuple of integers, for example "
            "(n_layers, n_qubits), or (n_angles,) for a flat tensor"
        )


def check_gates(ansatz: str, n_qubits: int, shape: tuple[int, ...], layers: Iterable[Any]) -> None:
    """Raise ConfigError, which begins with `ansatz`, at the first gate that is not valid on `n_qubits` wires.

    Every angle of a tensor of `shape` belongs to exactly one gate.
    """
    used: dict[tuple[int, ...], Gate] = {}
    for layer in layers:
        if isinstance(layer, Gate) or not isinstance(layer, Iterable):
            found = _shown(layer) if isinstance(layer, Gate) else repr(layer)
            raise ConfigError(
                f"{ansatz}: layers returned {found} in place of a layer; return or yield the gates of each layer as "
                "one list, also if a layer has one gate"
            )
        for gate in layer:
            _check_gate(ansatz, gate, n_qubits)
            if gate.slot is None:
                continue
            _check_slot(ansatz, gate, shape)
            if gate.slot in used:
                _refuse(
                    ansatz,
                    gate,
                    f"uses the angle {list(gate.slot)}, as {_shown(used[gate.slot])} does; each angle belongs to "
                    "exactly one gate, which the parameter-shift rule requires: give each gate an angle of its own",
                )
            used[gate.slot] = gate
    missing = next((slot for slot in itertools.product(*map(range, shape)) if slot not in used), None)
    if missing is not None:
        raise ConfigError(
            f"{ansatz}: no gate uses the angle {list(missing)} of angle_shape {shape}; use each angle in one gate, or "
            "make angle_shape smaller"
        )


def _check_gate(ansatz: str, gate: Any, n_qubits: int) -> None:
    if not isinstance(gate, Gate):
        raise ConfigError(f"{ansatz}: a layer contains {gate!r}; write Gate(name, wires, slot) for each of its gates")
    if gate.name not in ROTATIONS and gate.name not in PAIRS:
        _refuse(ansatz, gate, f"is unknown; {_ALLOWED}; {_COMPOSE}")
    if not isinstance(gate.wires, tuple) or not _are_integers(gate.wires):
        _refuse(ansatz, gate, "has wires that are not a tuple of integers; write, for example, (wire,) or (0, 1)")
    wanted = 1 + (gate.name in PAIRS)
    if len(gate.wires) != wanted or len(set(gate.wires)) != wanted:
        _refuse(ansatz, gate, f"needs {'two different wires' if wanted == 2 else 'one wire'}, as a tuple")
    if not all(0 <= wire < n_qubits for wire in gate.wires):
        _refuse(ansatz, gate, f"acts outside the circuit, whose wires are 0 to {n_qubits - 1}")
    if gate.slot is None and gate.name in ROTATIONS:
        _refuse(ansatz, gate, "needs an angle: give the index of the angle in the angle tensor as slot")
    if gate.slot is not None and gate.name in PAIRS:
        _refuse(ansatz, gate, f"has an angle; {_ALLOWED}; {_COMPOSE}")


def _check_slot(ansatz: str, gate: Gate, shape: tuple[int, ...]) -> None:
    slot = gate.slot
    if not isinstance(slot, tuple) or len(slot) != len(shape) or not _are_integers(slot):
        _refuse(ansatz, gate, f"needs as slot a tuple of integers, one for each axis of angle_shape {shape}")
    if not all(0 <= index < size for index, size in zip(slot, shape, strict=True)):
        _refuse(ansatz, gate, f"uses an angle that does not exist: angle_shape is {shape}, and indices begin at 0")


def _are_integers(values: Iterable[Any]) -> bool:
    """Whether all `values` are integers of Python: the hash in a checkpoint is made of JSON, without types of NumPy."""
    return all(type(value) is int for value in values)


def _refuse(ansatz: str, gate: Gate, reason: str) -> NoReturn:
    raise ConfigError(f"{ansatz}: {_shown(gate)} {reason}")


def _shown(gate: Gate) -> str:
    """The gate as a user writes it."""
    slot = "" if gate.slot is None else f", {gate.slot!r}"
    return f"Gate({gate.name!r}, {gate.wires!r}{slot})"
