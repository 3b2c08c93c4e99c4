"""A custom ansatz: RX and RY on every wire, with a ring of CZ between the layers.

python examples/own_ansatz.py
qpeft circuits draw --ansatz examples/own_ansatz.py:cz_ring --n-qubits 4 --n-layers 2
"""

from collections.abc import Iterator

import torch

from qpeft.circuits import Ansatz, Gate, gate_probabilities, register_ansatz


def angle_shape(n_qubits: int, n_layers: int) -> tuple[int, ...]:
    """angles[layer, 0, wire] is the angle of RX, angles[layer, 1, wire] that of RY."""
    return (n_layers, 2, n_qubits)


def layers(n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    pairs = n_qubits if n_qubits > 2 else n_qubits - 1  # two wires form one pair
    ring = [Gate("cz", (wire, (wire + 1) % n_qubits)) for wire in range(pairs)]
    for layer in range(n_layers):
        turns = [
            Gate(kind, (wire,), (layer, block, wire))
            for block, kind in enumerate(("rx", "ry"))
            for wire in range(n_qubits)
        ]
        yield turns + (ring if layer < n_layers - 1 else [])  # a last ring does not change the probabilities


register_ansatz("cz_ring", angle_shape, layers)


if __name__ == "__main__":
    ansatz = Ansatz("cz_ring", n_qubits=4, n_layers=2)
    print(ansatz.draw(), end="\n\n")
    angles = torch.linspace(0, 1, ansatz.n_angles).view(ansatz.angle_shape)
    print(gate_probabilities(ansatz, angles))
