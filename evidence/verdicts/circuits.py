"""Four circuits of the literature on four wires, whose verdicts are in docs/verdict.md."""

import math

import pennylane as qml

N_WIRES = 4
DEVICE = qml.device("default.qubit", wires=N_WIRES)
RING = [(wire, (wire + 1) % N_WIRES) for wire in range(N_WIRES)]


@qml.qnode(DEVICE)
def hardware_efficient(angles):
    """RY and RZ on every wire and a ring of CNOTs; angles (layers, 4, 2)."""
    for layer in angles:
        for wire in range(N_WIRES):
            qml.RY(layer[wire, 0], wire)
            qml.RZ(layer[wire, 1], wire)
        for pair in RING:
            qml.CNOT(pair)
    return qml.probs()


@qml.qnode(DEVICE)
def qaoa(angles):
    """MaxCut on a ring, all gates of a kind with one angle; angles (layers, 2)."""
    for wire in range(N_WIRES):
        qml.RY(math.pi / 2, wire)
    for cost, mixer in angles:
        for first, second in RING:
            qml.CNOT([first, second])
            qml.RZ(2 * cost, second)
            qml.CNOT([first, second])
        for wire in range(N_WIRES):
            qml.RX(2 * mixer, wire)
    return qml.probs()


@qml.qnode(DEVICE)
def brick(angles):
    """Blocks of RY and CZ on pairs, shifted by one wire in every other layer; angles (layers, 4)."""
    for number, layer in enumerate(angles):
        for wire in range(N_WIRES):
            qml.RY(layer[wire], wire)
        for first, second in RING[number % 2 :: 2]:
            qml.CZ([first, second])
    return qml.probs()


@qml.qnode(DEVICE)
def iqp(angles):
    """Diagonal gates on wires and on pairs between Hadamard gates; angles (layers, 8)."""
    for layer in angles:
        for wire in range(N_WIRES):
            qml.Hadamard(wire)
        for wire in range(N_WIRES):
            qml.RZ(layer[wire], wire)
        for number, (first, second) in enumerate(RING):
            qml.CNOT([first, second])
            qml.RZ(layer[N_WIRES + number], second)
            qml.CNOT([first, second])
    for wire in range(N_WIRES):
        qml.Hadamard(wire)
    return qml.probs()
