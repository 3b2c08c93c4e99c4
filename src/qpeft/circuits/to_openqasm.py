"""An ansatz as OpenQASM 3 text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.circuits.given_angles import given_angles

if TYPE_CHECKING:
    from qpeft.circuits.ansatz import Ansatz


def to_openqasm(ansatz: Ansatz, angles: Any = None) -> str:
    """The circuit without measurement, wire i on q[i]; an input for every angle where none are given.

    Raises ConfigError for angles of another shape.
    """
    values = None if angles is None else given_angles(ansatz, angles)
    free = np.ndindex(ansatz.angle_shape) if values is None else ()
    lines = [
        "OPENQASM 3.0;",
        'include "stdgates.inc";',
        f"// {ansatz.name}, n_qubits={ansatz.n_qubits}, n_layers={ansatz.n_layers}, angles in radians",
        "// q[0] is the most significant bit of a basis index",
        *(f"input float[64] {_input(slot)};" for slot in free),
        f"qubit[{ansatz.n_qubits}] q;",
    ]
    for name, wires, slot in ansatz.gates():
        angle = "" if slot is None else f"({_input(slot) if values is None else float(values[slot])})"
        lines.append(f"{name}{angle} {', '.join(f'q[{wire}]' for wire in wires)};")
    return "\n".join(lines) + "\n"


def _input(slot: tuple[int, ...]) -> str:
    """`theta_0_3` for the angle at [0, 3]."""
    return "_".join(["theta", *map(str, slot)])
