"""The fast routes as citizens of torch: agreement, memory, precision, transforms, refusals."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.errors import ConfigError

both_routes = pytest.mark.parametrize("route", [fold_probabilities, group_probabilities])


def random_circuit(n_layers, n_qubits, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    angles = (torch.rand(n_layers, n_qubits, generator=draw, dtype=dtype) * 2 - 1) * math.pi
    return angles.requires_grad_(), torch.randn(2**n_qubits, generator=draw, dtype=dtype)


def value_and_gradient(route, angles, weights):
    p = route(angles)
    return p.detach(), torch.autograd.grad(p @ weights, angles)[0]


@settings(max_examples=60)
@given(st.integers(1, 10), st.integers(2, 13), st.integers(0, 2**31))
def test_routes_agree_with_each_other_and_with_the_gates(n_layers, n_qubits, seed):
    angles, weights = random_circuit(n_layers, n_qubits, seed)
    weights /= weights.norm()
    ansatz = Ansatz("ry_ladder", n_qubits, n_layers)
    p, gradient = value_and_gradient(lambda at: gate_probabilities(ansatz, at), angles, weights)
    for route in (fold_probabilities, group_probabilities, probabilities):
        p_fast, gradient_fast = value_and_gradient(route, angles, weights)
        torch.testing.assert_close(p_fast, p, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient_fast, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_qubits", [14, 16, 17])
def test_routes_agree_beyond_the_sizes_they_are_chosen_for(n_qubits):
    angles, weights = random_circuit(2, n_qubits, seed=n_qubits)
    folded, grouped = (
        value_and_gradient(route, angles, weights) for route in (fold_probabilities, group_probabilities)
    )
    torch.testing.assert_close(grouped, folded, rtol=0, atol=1e-12)


@both_routes
@pytest.mark.parametrize("n_qubits", [2, 7, 12])
def test_float32_is_as_good_as_float32_can_be(route, n_qubits):
    angles, weights = random_circuit(8, n_qubits, seed=1)
    weights /= weights.norm()
    p, gradient = value_and_gradient(route, angles, weights)
    single = angles.detach().float().requires_grad_()
    p_single, gradient_single = value_and_gradient(route, single, weights.float())
    assert p_single.dtype == gradient_single.dtype == torch.float32
    torch.testing.assert_close(p_single.double(), p, rtol=0, atol=2e-6)
    torch.testing.assert_close(gradient_single.double(), gradient, rtol=0, atol=2e-6)


@both_routes
def test_any_layout_of_the_upstream_gradient_is_read_right(route):
    angles, _ = random_circuit(3, 5, seed=3)
    ansatz = Ansatz("ry_ladder", 5, 3)
    for loss in (lambda p: p[1::3].square().sum(), lambda p: p.flip(0)[:4].sum(), lambda p: p.view(4, 8).T[2].sum()):
        expected = torch.autograd.grad(loss(gate_probabilities(ansatz, angles)), angles)[0]
        torch.testing.assert_close(torch.autograd.grad(loss(route(angles)), angles)[0], expected, rtol=0, atol=1e-12)


def saved_numbers(route, angles):
    """How many parameters live on for backward, by the storage that they keep alive."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        p = route(angles)
    del p
    return sum(storages.values())


@pytest.mark.parametrize("n_layers", [1, 8, 64])
def test_groups_save_one_state_whatever_the_depth(n_layers):
    angles, _ = random_circuit(n_layers, 13, seed=4)
    assert saved_numbers(probabilities, angles) == 2**13 + angles.numel()


def test_fold_saves_one_small_state_per_layer():
    angles, _ = random_circuit(8, 10, seed=4)
    matrices = 3 * 2**10  # W_A and both sectors of W_B
    assert saved_numbers(fold_probabilities, angles) <= 9 * 2**10 + 8 * matrices
    assert saved_numbers(fold_probabilities, angles.detach()) == 0


@pytest.mark.parametrize("n_qubits", [5, 13])
def test_nothing_is_recorded_when_no_gradient_is_wanted(n_qubits):
    angles, _ = random_circuit(3, n_qubits, seed=5)
    recorded = probabilities(angles)
    with torch.no_grad():
        assert not probabilities(angles).requires_grad
    with torch.inference_mode():
        inferred = probabilities(angles)
    assert recorded.requires_grad
    assert torch.equal(inferred.clone(), recorded.detach())


@pytest.mark.parametrize("context", ["torch.inference_mode()", "torch.device('meta')"])
def test_tables_first_built_in_a_passing_context_serve_training(context):
    program = f"""
import torch
from qpeft.circuits import probabilities
for n_qubits in (6, 14, 15):  # fold, groups, cut
    angles = torch.zeros(2, n_qubits, device="cpu")
    with {context}:
        probabilities(angles)
    p = probabilities(angles.requires_grad_())
    p[0].backward()
    assert p[0] == 1 and angles.grad.abs().max() == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("n_qubits", [6, 13, 15])
def test_autocast_does_not_touch_the_circuit(n_qubits):
    angles, weights = random_circuit(3, n_qubits, seed=6, dtype=torch.float32)
    p, gradient = value_and_gradient(probabilities, angles, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p_mixed = probabilities(angles)
        (gradient_mixed,) = torch.autograd.grad(p_mixed, angles, weights)
    assert torch.equal(p_mixed, p)
    assert torch.equal(gradient_mixed, gradient)


def test_a_second_derivative_is_refused():
    angles, _ = random_circuit(2, 3, seed=9)
    (gradient,) = torch.autograd.grad(probabilities(angles).square().sum(), angles, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_angles_are_named(value):
    angles = torch.zeros(3, 4)
    angles[1, 2] = value
    angles[2, 0] = value
    with pytest.raises(ConfigError) as caught:
        probabilities(angles)
    assert str(caught.value) == "circuit angles contain NaN or Inf at layer 1, wire 2"


def test_finite_angles_whose_sum_overflows_are_allowed():
    assert probabilities(torch.full((2, 2), 3e38)).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        (torch.zeros(3), "angles must have shape (n_layers, n_qubits), both at least 1, got (3,)"),
        (torch.zeros(0, 3), "angles must have shape (n_layers, n_qubits), both at least 1, got (0, 3)"),
        (
            torch.zeros(2, 3, dtype=torch.bfloat16),
            "angles must be float32 or float64, got torch.bfloat16; cast them, for example angles.float()",
        ),
    ],
)
def test_wrong_tensors_are_refused(angles, message):
    with pytest.raises(ConfigError) as caught:
        probabilities(angles)
    assert str(caught.value) == message
