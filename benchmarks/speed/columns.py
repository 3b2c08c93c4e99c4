"""Quantum-PEFT's orthonormal columns with the gradient of their parameters, and dense constructions of equal size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits import Ansatz, basis_columns, lie_columns, orthogonal_columns, two_design_columns
from qpeft.circuits.counting import count_orthogonal
from qpeft.circuits.gates import gate_columns
from speed.machine import Machine
from speed.measure import Case, Peer, Results, Row, measure

TITLE = "Quantum-PEFT's columns, float32"
WIDTHS = {768: "GPT-2 small", 1280: "GPT-2 large"}
N_MODULES, N_LAYERS, K = 24, 2, 8


class Size(NamedTuple):
    width: int
    k: int
    modules: int
    rounds: int


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    yield from measure(circuit(Size(64, 4, 2, 2) if quick else Size(1024, K, N_MODULES, 5)), machine)
    yield from measure(circuit(Size(64, 4, 1, 2) if quick else Size(1024, K, 1, 5)), machine)
    for width in (48,) if quick else WIDTHS:
        size = Size(width, K, N_MODULES, 2 if quick else 5)
        yield from measure(any_width(size), machine)
        yield from measure(lie(size._replace(modules=1)), machine)


def circuit(size: Size) -> Case:
    """A power of two: one circuit per module; all programs must give the same gradient of its angles."""
    n_qubits = size.width.bit_length() - 1
    ansatz = Ansatz("two_design", n_qubits, N_LAYERS)
    angles = _random(size.modules, ansatz.n_angles)
    weights = _random(size.modules, size.width, size.k).detach()
    columns = basis_columns("spread", n_qubits, size.k).tolist()

    def task(build: Callable[[Tensor], Tensor]):
        return lambda: torch.autograd.grad(build(angles), angles, weights)

    def gates(start: Sequence[int], wanted: Sequence[int]) -> Peer:
        one = torch.vmap(lambda angles: gate_columns(ansatz, angles, start)[:, wanted])
        return Peer(lambda: task(one))

    peers = {"gate by gate, autograd": gates(columns, range(size.k))}
    if size.modules == 1:
        peers["the dense matrix, gate by gate"] = gates(range(size.width), columns)
        peers["PennyLane default.qubit, backprop"] = Peer(lambda: task(_default_qubit(ansatz, columns)))
    return Case(
        f"width {size.width}, {size.k} columns of {_count(size.modules)}",
        task(lambda a: two_design_columns(a, n_qubits, N_LAYERS, columns)),
        peers,
        tolerance=1e-4,
        rounds=size.rounds,
        moved=2 * weights.nbytes,
    )


def any_width(size: Size) -> Case:
    """Other parameters give other columns, so only their orthonormality is compared."""
    angles = _random(size.modules, count_orthogonal(size.width, N_LAYERS))
    dense = _random(size.modules, size.width, size.k)
    weights = _random(size.modules, size.width, size.k).detach()
    indices = list(range(size.k))

    def task(build: Callable[[Tensor], Tensor], start: Tensor):
        def run() -> Results:
            q = build(start)
            return q.detach(), *torch.autograd.grad(q, start, weights)

        return run

    return Case(
        f"width {size.width}, {size.k} columns of {_count(size.modules)}",
        task(lambda a: orthogonal_columns(a, size.width, N_LAYERS, indices), angles),
        {
            "torch.linalg.qr": Peer(lambda: task(lambda x: torch.linalg.qr(x).Q, dense)),
            "torch.linalg.householder_product": Peer(lambda: task(_householder, dense)),
        },
        tolerance=1e-4,
        rounds=size.rounds,
        moved=2 * weights.nbytes,
        compared=lambda results: (results[0].mT @ results[0],),
    )


def lie(size: Size) -> Case:
    """The Lie-algebra family with one column of parameters, and the exponential of the dense skew matrix."""
    b = _random(size.width, 1)
    weights = _random(size.width, size.k).detach()

    def whole() -> Results:
        lower = torch.nn.functional.pad(b.tril(-1), (0, size.width - 1))
        return torch.autograd.grad(torch.matrix_exp(lower - lower.mT)[:, : size.k], b, weights)

    return Case(
        f"width {size.width}, {size.k} columns of the exponential (family lie)",
        lambda: torch.autograd.grad(lie_columns(b, size.k), b, weights),
        {"torch.matrix_exp": Peer(lambda: whole)},
        tolerance=1e-3,
        rounds=size.rounds,
        moved=2 * weights.nbytes,
    )


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def _count(modules: int) -> str:
    return "one circuit" if modules == 1 else f"{modules} modules"


def _householder(x: Tensor) -> Tensor:
    """Reflections along the lower part of x, (M, N, K)."""
    v = x.tril(-1) + torch.eye(*x.shape[-2:])
    return torch.linalg.householder_product(v, 2 / v.square().sum(-2))


def _default_qubit(ansatz: Ansatz, columns: list[int]) -> Callable[[Tensor], Tensor]:
    """One circuit from each basis state, in turn: (1, P) -> (1, 2**N, K)."""
    import pennylane as qml

    wires, gates = range(ansatz.n_qubits), ansatz.to_pennylane()

    @qml.qnode(qml.device("default.qubit", wires=wires), interface="torch", diff_method="backprop")
    def column(angles, index):
        qml.BasisState([index >> (ansatz.n_qubits - 1 - wire) & 1 for wire in wires], wires=wires)
        gates(angles)
        return qml.state()

    return lambda angles: torch.stack([column(angles[0], index).real for index in columns], -1)[None].float()
