"""The simulator against PennyLane, the gate-by-gate reference, dense matrices and finite
differences; its memory.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from circuits import ANSATZE, by_pennylane, random_angles, value_and_gradient
from qpeft.circuits import (
    Ansatz,
    Gate,
    exact_probabilities,
    register_ansatz,
    simulate,
)
from qpeft.circuits.reference import gate_evolve
from qpeft.circuits.simulate import compiled, evolve
from qpeft.testing import ansatz_contract

every_ansatz = pytest.mark.parametrize("name", ANSATZE)


# -- values and gradients


@every_ansatz
@pytest.mark.parametrize(
    "n_qubits, n_layers", [(1, 2), (2, 3), (3, 2), (4, 8), (5, 2), (7, 1), (9, 2), (10, 3)]
)
def test_values_and_gradients_equal_those_of_pennylane(name, n_qubits, n_layers):
    ansatz = Ansatz(name, n_qubits, n_layers)
    angles = random_angles(ansatz)
    weights = torch.randn(2**n_qubits, dtype=torch.float64)
    run, weights = partial(exact_probabilities, ansatz), weights / weights.norm()
    found = value_and_gradient(run, angles, weights)

    assert_close(
        found, value_and_gradient(by_pennylane(ansatz), angles, weights), rtol=0, atol=1e-10
    )

    for single, one in zip(
        value_and_gradient(run, angles.float(), weights.float()), found, strict=True
    ):
        assert_close(single, one.float(), rtol=0, atol=3e-6)


@every_ansatz
@pytest.mark.parametrize("n_qubits", range(1, 13))
def test_every_number_of_qubits_equals_the_gates(name, n_qubits):
    """All divisions into groups of wires; several circuits, columns and blocks at once."""
    ansatz = Ansatz(name, n_qubits, 2)
    columns = sorted({0, 2**n_qubits // 3, 2**n_qubits - 1})
    angles = random_angles(ansatz, 2)
    start = torch.eye(2**n_qubits, dtype=torch.float64)[columns]
    weights = torch.randn(2, len(columns), 2**n_qubits, dtype=torch.float64)
    program = compiled(ansatz, torch.float64, angles.device)
    (columns_found, slopes), (block_found, block_slopes), (expected, expected_slopes) = (
        value_and_gradient(lambda at, run=run: run(at).abs().square(), angles, weights)
        for run in (
            lambda at: evolve(at.flatten(1), program, tuple(columns)),
            lambda at: evolve(at.flatten(1), program, start[None]),
            lambda at: torch.stack([gate_evolve(ansatz, each, start.mT).mT for each in at]),
        )
    )

    assert_close((columns_found, slopes), (expected, expected_slopes), rtol=0, atol=1e-11)
    assert_close((block_found, block_slopes), (expected, expected_slopes), rtol=0, atol=1e-11)


_NAMES = st.sampled_from(["rx", "ry", "rz", "cx", "cz"])
_DRAWN = st.tuples(
    _NAMES,
    st.integers(0, 8),
    st.integers(1, 8),
    st.integers(-1, 2),
    st.sampled_from([1.0, -2.0, 0.3]),
)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 9), st.lists(_DRAWN, min_size=1, max_size=25), st.integers(0, 2**31))
def test_any_order_of_gates_equals_the_reference(n_qubits, drawn, seed):
    """Angles of several gates, with factors, and constant ones; a block of states, and its
    gradient.
    """

    def layers(n_qubits, n_layers):
        yield [Gate("rx", (0,), (slot,)) for slot in range(3)]
        for name, wire, step, slot, scale in drawn:
            wires = (
                wire % n_qubits,
                (wire % n_qubits + 1 + (step - 1) % (n_qubits - 1)) % n_qubits,
            )
            if name in ("cx", "cz"):
                yield [Gate(name, wires)]
            elif slot < 0:
                yield [Gate(name, wires[:1], shift=scale)]
            else:
                yield [Gate(name, wires[:1], (slot,), scale, shift=0.1 * step)]

    register_ansatz(
        f"random {n_qubits} {drawn}".replace(":", ""), lambda n_qubits, n_layers: (3,), layers
    )
    ansatz = Ansatz(f"random {n_qubits} {drawn}".replace(":", ""), n_qubits, 1)
    draw = torch.Generator().manual_seed(seed)
    angles = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    start = torch.randn(1, 2, 2**n_qubits, generator=draw, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 2, 2**n_qubits, generator=draw, dtype=torch.float64)
    program = compiled(ansatz, torch.float64, angles.device)
    results = []
    for run in (
        lambda at: evolve(at, program, start),
        lambda at: torch.stack([gate_evolve(ansatz, each, start[0].mT).mT for each in at]),
    ):
        at = angles.clone().requires_grad_()
        found = run(at).abs().square()
        results.append((found, *torch.autograd.grad((found * weights).sum(), (at, start))))

    assert_close(*results, rtol=0, atol=1e-10)


def test_circuits_run_in_parts_that_fit_the_memory(monkeypatch):
    angles = random_angles(LADDER, 5)
    expected = exact_probabilities(LADDER, angles)
    monkeypatch.setattr(simulate, "_AT_ONCE", 32)  # two circuits at once
    assert_close(exact_probabilities(LADDER, angles), expected, rtol=0, atol=1e-14)
    assert simulate._group_sizes(11, 100) == (4, 4, 3)


# -- the contract detects mistakes


LADDER = Ansatz("ry_ladder", 4, 3)


@pytest.mark.parametrize("mistake", ["reversed wires", "half angles", "shape"])
def test_contract_detects_another_circuit(mistake):
    """The first takes wire 0 for the least significant bit."""

    def reference(angles):
        found = (
            gate_evolve(LADDER, angles / 2 if mistake == "half angles" else angles)[:, 0]
            .abs()
            .square()
        )
        if mistake == "shape":
            return found[:8]
        return (
            found.view(2, 2, 2, 2).permute(3, 2, 1, 0).flatten()
            if mistake == "reversed wires"
            else found
        )

    with pytest.raises(AssertionError, match="dense reference"):
        ansatz_contract(lambda: LADDER, reference)


PROGRAM = """
import resource, torch
from qpeft.circuits import *
angles = torch.ones(8, {n}, requires_grad=True)
torch.autograd.grad(probabilities(angles), angles, torch.ones(2**{n}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_memory_of_20_qubits_is_below_25_vectors():
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM.format(n=n)], check=True, capture_output=True
            ).stdout
        )
        for n in (2, 20)
    )
    assert 1024 * (many - few) < 25 * 4 * 2**20
