"""Depth and two-qubit gates of an ansatz after transpilation to devices with different couplings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qpeft.circuits.ansatz import Ansatz
from qpeft.errors import missing_extra

if TYPE_CHECKING:
    from qiskit.transpiler import CouplingMap

BASIS = ("rz", "sx", "x", "cx")
_DISTANCE = 7  # of the heavy-hex lattice: 115 qubits, similar to existing devices


class Size(NamedTuple):
    """Size of a circuit in the basis gates rz, sx, x, cx."""

    depth: int
    two_qubit_gates: int


def transpiled_sizes(ansatz: Ansatz) -> dict[str, Size]:
    """Sizes by coupling ("all-to-all", "line", "heavy-hex"), with Qiskit's default pass manager and a fixed seed.

    The angles stay free parameters, as in training: a circuit is transpiled once for all angles.

    Raises:
        ConfigError: Qiskit is missing.
    """
    try:
        from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
    except ModuleNotFoundError as error:
        raise missing_extra("the size after transpiling", "Qiskit") from error
    couplings = {
        "all-to-all": None,
        "line": CouplingMap.from_line(ansatz.n_qubits),
        "heavy-hex": _heavy_hex(ansatz.n_qubits),
    }
    circuit, sizes = ansatz.to_qiskit(), {}
    for name, coupling in couplings.items():
        passes = generate_preset_pass_manager(basis_gates=list(BASIS), coupling_map=coupling, seed_transpiler=0)
        found = passes.run(circuit)
        sizes[name] = Size(found.depth(), found.num_nonlocal_gates())
    return sizes


def _heavy_hex(n_qubits: int) -> CouplingMap:
    from qiskit.transpiler import CouplingMap

    distance = _DISTANCE
    while (5 * distance**2 - 2 * distance - 1) // 2 < n_qubits:
        distance += 2
    return CouplingMap.from_heavy_hex(distance)
