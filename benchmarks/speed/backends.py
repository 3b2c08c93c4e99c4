"""One step through each backend, value and gradient, compared with the exact simulation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qpeft.backends import CircuitRun, Jobs
from qpeft.backends.named import as_backend
from speed.circuits import problem
from speed.machine import Machine
from speed.measure import Case, Peer, Row, Task, measure

TITLE = "QPA's circuit through backends, 8 layers, float64"
BACKENDS = ("pennylane:lightning.qubit", "pennylane:default.qubit", "pennylane:default.mixed", "qiskit:aer")
SHOTS = 8192


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    for n_qubits in (3,) if quick else (5, 7):
        yield from measure(step(n_qubits, ("pennylane:default.qubit",) if quick else BACKENDS, quick), machine)


def step(n_qubits: int, names: tuple[str, ...], quick: bool) -> Case:
    ansatz, angles, weights = problem(n_qubits, torch.float64)

    def task(name: str, shots: int | None) -> Task:
        run = CircuitRun(ansatz, Jobs(as_backend(name, n_qubits), shots))
        return lambda: torch.autograd.grad(run(angles), angles, weights)

    def peer(name: str, shots: int | None) -> Peer:
        return Peer(lambda: task(name, shots), same=shots is None)

    peers = {f"exact, {SHOTS:,} shots": peer("exact", SHOTS)}
    for name in names:
        if name != "qiskit:aer":  # always samples shots
            peers[name] = peer(name, None)
        peers[f"{name}, {SHOTS:,} shots"] = peer(name, SHOTS)
    return Case(f"{n_qubits} qubits, a step", task("exact", None), peers, tolerance=1e-6, rounds=2 if quick else 5)
