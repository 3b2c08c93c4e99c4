"""QAA's branch for each token: features, V f + c, and the gradients of x, the angles, V and c."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from qpeft.circuits import Ansatz, amplitude_expectations, amplitude_qubits
from qpeft.circuits.gates import gate_evolve
from speed.machine import Machine
from speed.measure import Case, Peer, Row, Task, measure

TITLE = "QAA's branch for each token, one layer, float32"
ANSATZE = ("square", "qaa", "rxyz")

Features = Callable[[Tensor, Tensor], Tensor]  # (T, d), angles -> (T, N)


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    for ansatz in ANSATZE[:1] if quick else ANSATZE:
        yield from measure(branch(ansatz, *((64, 8, 2) if quick else (768, 1024, 7))), machine)


def branch(name: str, width: int, n_tokens: int, rounds: int) -> Case:
    draw = torch.Generator().manual_seed(0)
    circuit = Ansatz(name, amplitude_qubits(width), 1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).requires_grad_()

    x, angles, v, c = leaf(n_tokens, width), leaf(*circuit.angle_shape), leaf(width, circuit.n_qubits), leaf(width)
    a, b, weight = leaf(8, width), leaf(width, 8), torch.randn(width, width, generator=draw) / width**0.5
    pulled = torch.randn(n_tokens, width, generator=draw)  # the gradient of the output

    def task(features: Features) -> Task:
        return lambda: torch.autograd.grad(F.linear(features(x, angles), v, c), (x, angles, v, c), pulled)

    def linear() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.linear(x, weight), x, pulled)

    def lora() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.linear(F.linear(x, a), b), (x, a, b), pulled)

    return Case(
        f"{name}, {n_tokens:,} tokens of width {width}",
        task(lambda x, angles: amplitude_expectations(x, angles, name)),
        {
            "the frozen linear map": Peer(lambda: linear, same=False),
            "LoRA of rank 8": Peer(lambda: lora, same=False),
            "gate by gate, autograd": Peer(lambda: task(_gate_by_gate(circuit))),
            "PennyLane default.qubit, backprop": Peer(lambda: task(_default_qubit(circuit))),
        },
        tolerance=1e-3,
        rounds=rounds,
        moved=2 * (x.nbytes + pulled.nbytes),
    )


def _gate_by_gate(circuit: Ansatz) -> Features:
    index = torch.arange(2**circuit.n_qubits)
    signs = 1.0 - 2 * (index >> torch.arange(circuit.n_qubits - 1, -1, -1)[:, None] & 1)  # (N, D)

    def run(x: Tensor, angles: Tensor) -> Tensor:
        a = F.pad(F.normalize(x, dim=-1), (0, len(index) - x.shape[-1]))
        return (signs @ gate_evolve(circuit, angles, a.mT).abs().square()).mT

    return run


def _default_qubit(circuit: Ansatz) -> Features:
    """All tokens as one batch."""
    import pennylane as qml

    wires, gates = range(circuit.n_qubits), circuit.to_pennylane()

    @qml.qnode(qml.device("default.qubit", wires=wires), interface="torch", diff_method="backprop")
    def run(x, angles):
        qml.AmplitudeEmbedding(x, wires, pad_with=0.0, normalize=True)
        gates(angles)
        return [qml.expval(qml.PauliZ(wire)) for wire in wires]

    return lambda x, angles: torch.stack(run(x, angles), -1).to(x.dtype)
