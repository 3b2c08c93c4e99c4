"""QPA's circuit with many qubits, a copy of a vector with as many entries, and the route with groups of wires."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qpeft.circuits import probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from speed.circuits import problem
from speed.machine import Machine
from speed.measure import Case, Peer, Row, measure

TITLE = "QPA's circuit, large, 8 layers"
SIZES = (18, 20, 22, 24)
GROUPS_UP_TO = 20  # qubits; with more this route takes seconds


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    for n_qubits in (15,) if quick else SIZES:
        yield from measure(gradient(n_qubits, 2 if quick else 7), machine)


def gradient(n_qubits: int, rounds: int) -> Case:
    _, angles, weights = problem(n_qubits, torch.float32)
    copy = torch.empty_like(weights)
    peers = {"a copy of the vector": Peer(lambda: lambda: (copy.copy_(weights),), same=False)}
    if n_qubits <= GROUPS_UP_TO:
        peers["groups of wires, adjoint"] = Peer(
            lambda: lambda: torch.autograd.grad(group_probabilities(angles), angles, weights)
        )
    return Case(
        f"{n_qubits} qubits, forward and backward, float32",
        lambda: torch.autograd.grad(probabilities(angles), angles, weights),
        peers,
        tolerance=1e-4,
        rounds=rounds,
        moved=2 * weights.nbytes,
    )
