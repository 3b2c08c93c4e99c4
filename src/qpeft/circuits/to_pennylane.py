"""An ansatz as a PennyLane circuit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from qpeft.circuits.ansatz import Ansatz


def to_pennylane(ansatz: Ansatz) -> Callable[..., None]:
    """`circuit(angles, wires=None)`, which queues the circuit's gates without measurement.

    Raises ConfigError if PennyLane is missing; `circuit` raises it for angles of another shape, or too few wires.
    """
    try:
        import pennylane as qml
    except ModuleNotFoundError as error:
        raise missing_extra("to_pennylane", "PennyLane") from error
    kinds = {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "cx": qml.CNOT, "cz": qml.CZ}

    def circuit(angles: Any, wires: Sequence[Any] | None = None) -> None:
        _check_shape(ansatz, tuple(angles.shape))
        labels = _labels(ansatz, wires)
        for gate in ansatz.gates():
            angle = () if gate.slot is None else (angles[(..., *gate.slot)],)  # (), or (B,) for a batch
            kinds[gate.name](*angle, wires=[labels[wire] for wire in gate.wires])

    return circuit


def _check_shape(ansatz: Ansatz, found: tuple[int, ...]) -> None:
    shape = ansatz.angle_shape
    if found[-len(shape) :] != shape or len(found) > len(shape) + 1:
        raise ConfigError(
            f"{ansatz.name} on {ansatz.n_qubits} qubits with {ansatz.n_layers} layers has angles of shape {shape}, "
            f"with one axis more in front for several circuits at once; got {found}"
        )


def _labels(ansatz: Ansatz, wires: Sequence[Any] | None) -> list[Any]:
    labels = list(range(ansatz.n_qubits) if wires is None else wires)
    if len(labels) != ansatz.n_qubits:
        raise ConfigError(f"{ansatz.n_qubits} qubits need as many wires, got {len(labels)}: {labels}")
    return labels
