"""QPA's circuit and other programs: all probabilities, and the gradient of a weighted sum of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import pi

import torch
from torch import Tensor

from qpeft.circuits import Ansatz, probabilities
from speed import peers
from speed.machine import Machine
from speed.measure import Case, Peer, Row, measure

TITLE = "QPA's circuit, 8 layers"
SIZES, FORWARD_SIZES = (7, 8, 10, 12, 16), (8, 12, 16)
UNROLLED_SIZES = (8,)  # compilation takes half a minute, and minutes for more qubits
N_LAYERS = 8
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    for n_qubits in (4,) if quick else SIZES:
        for dtype in TOLERANCE:
            yield from measure(gradient(n_qubits, dtype, quick), machine)
    for n_qubits in (4,) if quick else FORWARD_SIZES:
        yield from measure(forward(n_qubits, quick), machine)


def problem(n_qubits: int, dtype: torch.dtype) -> tuple[Ansatz, Tensor, Tensor]:
    """A circuit, random angles (L, N) and weights (2**N,)."""
    draw = torch.Generator().manual_seed(n_qubits)
    angles = (torch.rand(N_LAYERS, n_qubits, generator=draw, dtype=dtype) * 2 - 1) * pi
    weights = torch.randn(2**n_qubits, generator=draw, dtype=dtype)
    return Ansatz("ry_ladder", n_qubits, N_LAYERS), angles.requires_grad_(), weights


def gradient(n_qubits: int, dtype: torch.dtype, quick: bool) -> Case:
    given = problem(n_qubits, dtype)
    _, angles, weights = given
    ways = {"PennyLane default.qubit, backprop": peers.default_qubit_gradient}
    if dtype == torch.float64:
        ways["PennyLane lightning.qubit, adjoint"] = peers.lightning_qubit_gradient
    else:
        ways["TorchQuantum, backprop"] = peers.torch_quantum_gradient
    if not quick:
        ways["TensorCircuit-NG, jit of a layer"] = partial(peers.tensor_circuit_gradient, scan=True)
    if n_qubits in UNROLLED_SIZES and dtype == torch.float32:
        ways["TensorCircuit-NG, jit of all layers"] = partial(peers.tensor_circuit_gradient, scan=False)
    return Case(
        f"{n_qubits} qubits, forward and backward, {str(dtype).removeprefix('torch.')}",
        lambda: torch.autograd.grad(probabilities(angles), angles, weights),
        {name: Peer(partial(way, *given)) for name, way in ways.items()},
        TOLERANCE[dtype],
        rounds=2 if quick else 9,
        moved=2 * weights.nbytes,
    )


def forward(n_qubits: int, quick: bool) -> Case:
    ansatz, angles, weights = problem(n_qubits, torch.float64)
    fixed = angles.detach()
    ways = {
        "PennyLane default.qubit": peers.default_qubit_forward,
        "PennyLane lightning.qubit": peers.lightning_qubit_forward,
        "Qiskit Statevector": peers.qiskit_forward,
    }
    return Case(
        f"{n_qubits} qubits, forward, float64",
        lambda: (probabilities(fixed),),
        {name: Peer(partial(way, ansatz, angles)) for name, way in ways.items()},
        TOLERANCE[torch.float64],
        rounds=2 if quick else 9,
        moved=weights.nbytes,
    )
