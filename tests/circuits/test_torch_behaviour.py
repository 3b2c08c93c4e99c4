"""All simulators in autocast, and with tables that were first built in another context."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from qpeft.circuits import (
    Ansatz,
    amplitude_expectations,
    amplitude_probabilities,
    amplitude_qubits,
    count_orthogonal,
    exact_probabilities,
    lie_columns,
    orthogonal_columns,
    probabilities,
)


def two_design(signs):
    shape = (2, Ansatz("two_design", 6, 2).n_angles)
    return lambda angles: orthogonal_columns(angles, 64, 2, range(3), signs=signs), shape


def columns(width, construction):
    shape = (2, count_orthogonal(width, 2, construction))
    return lambda angles: orthogonal_columns(angles, width, 2, [0, 3], construction), shape


def of_angles(read, ansatz, n_layers):
    x = torch.linspace(-1, 2, 200).view(4, 50)
    return lambda angles: read(x, angles, ansatz), Ansatz(ansatz, amplitude_qubits(50), n_layers).angle_shape


def of_inputs(read, ansatz):
    angles = torch.linspace(-1, 2, 18).view(1, 3, 6)
    return lambda x: read(x, angles[:, : 1 if ansatz == "qaa" else 3], ansatz), (4, 50)


AMPLITUDE = [(read, a) for read in (amplitude_expectations, amplitude_probabilities) for a in ("square", "qaa", "rxyz")]
SIMULATORS = {
    "ladder": (probabilities, (3, 9)),
    "efficient_su2": (partial(exact_probabilities, Ansatz("efficient_su2", 6, 2)), (3, 2, 6)),
    "two_design": two_design(None),
    "two_design, signs": two_design({6: torch.ones(4, 64)}.__getitem__),
    "orthogonal, qsd": columns(48, "qsd"),
    "orthogonal, pad": columns(45, "pad"),
    "orthogonal, circuit": columns(64, "auto"),
    **{f"lie, {kind}": (lambda b, kind=kind: lie_columns(b, 4, kind), (30, 2)) for kind in ("exp", "cayley")},
    **{f"{read.__name__}, {a}, {n}": of_angles(read, a, n) for read, a in AMPLITUDE for n in (1, 2)},
    **{f"{read.__name__}, {a}, inputs": of_inputs(read, a) for read, a in AMPLITUDE},
}

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def leaf(shape):
    return (0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.mark.parametrize("name", SIMULATORS)
def test_autocast_does_not_change_values_and_gradients(name):
    simulate, shape = SIMULATORS[name]
    tensor = leaf(shape)
    plain = simulate(tensor)
    weights = torch.randn_like(plain)
    (slope,) = torch.autograd.grad(plain, tensor, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = simulate(tensor)
    assert torch.equal(cast, plain)
    torch.testing.assert_close(torch.autograd.grad(cast, tensor, weights)[0], slope, **CLOSE)


@pytest.mark.parametrize("context", ["torch.inference_mode()", "torch.device('meta')"])
def test_tables_first_built_in_another_context_can_be_trained(context):
    program = f"""
import sys, torch
sys.path.insert(0, "{Path(__file__).parent}")
from test_torch_behaviour import SIMULATORS, leaf
for name, (simulate, shape) in SIMULATORS.items():
    tensor = leaf(shape)
    with torch.inference_mode() if name.startswith("lie") else {context}:
        simulate(tensor.detach())
    simulate(tensor).sum().backward()
    assert tensor.grad.isfinite().all(), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)
