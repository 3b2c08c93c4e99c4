"""The "cut" route: values, gradients, slices and memory."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, ladder, ladder_cut, probabilities, probabilities_slice
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.ladder_cut import cut_probabilities, cut_slice, product_terms
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.errors import ConfigError


def random_circuit(n_layers, n_qubits, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    angles = (torch.rand(n_layers, n_qubits, generator=draw, dtype=dtype) * 2 - 1) * math.pi
    weights = torch.randn(2**n_qubits, generator=draw, dtype=dtype)
    return angles.requires_grad_(), weights / weights.norm()


def value_and_gradient(route, angles, weights):
    p = route(angles)
    return p.detach(), torch.autograd.grad(p, angles, weights)[0]


def gates(angles):
    n_layers, n_qubits = angles.shape
    return gate_probabilities(Ansatz("ry_ladder", n_qubits, n_layers), angles)


def assert_agrees(route, reference, angles, weights):
    (p, gradient), (p_expected, gradient_expected) = (
        value_and_gradient(each, angles, weights) for each in (route, reference)
    )
    torch.testing.assert_close(p, p_expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_expected, rtol=0, atol=1e-10)


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(4, 12), st.integers(0, 2**31))
def test_the_cut_agrees_with_the_gates(n_layers, n_qubits, seed):
    assert_agrees(cut_probabilities, gates, *random_circuit(n_layers, n_qubits, seed))


@pytest.mark.parametrize(("n_qubits", "n_layers"), [(15, 8), (16, 5)])
def test_where_it_is_chosen_it_agrees_with_the_gates(n_qubits, n_layers):
    assert_agrees(probabilities, gates, *random_circuit(n_layers, n_qubits, seed=n_qubits))


@pytest.mark.parametrize(("n_qubits", "n_layers"), [(15, 1), (16, 8), (17, 9), (18, 3)])
def test_where_it_is_chosen_it_agrees_with_the_groups(n_qubits, n_layers):
    assert_agrees(probabilities, group_probabilities, *random_circuit(n_layers, n_qubits, seed=n_qubits))


def test_float32_gradient_is_good_to_a_hundred_thousandth():
    angles, weights = random_circuit(8, 18, seed=2)
    p, gradient = value_and_gradient(probabilities, angles, weights)
    single = angles.detach().float().requires_grad_()
    p_single, gradient_single = value_and_gradient(probabilities, single, weights.float())
    assert p_single.dtype == gradient_single.dtype == torch.float32
    assert (p_single - p).norm() <= 1e-5 * p.norm()
    assert (gradient_single - gradient).norm() <= 1e-5 * gradient.norm()


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(4, 12), st.data())
def test_a_slice_is_what_it_is_of_the_whole(n_layers, n_qubits, data):
    start = data.draw(st.integers(0, 2**n_qubits - 1))
    stop = data.draw(st.integers(start + 1, 2**n_qubits))
    angles, weights = random_circuit(n_layers, n_qubits, seed=start)
    assert_agrees(lambda at: cut_slice(at, start, stop), lambda at: gates(at)[start:stop], angles, weights[start:stop])


@pytest.mark.parametrize("n_qubits", [1, 6, 13, 15, 16])
def test_slices_of_every_size_of_circuit(n_qubits):
    angles, weights = random_circuit(4, n_qubits, seed=3)
    total = 2**n_qubits
    for start, stop in ((0, total), (0, 1), (total - 1, total), (total // 3, total // 2 + 1)):
        assert_agrees(
            lambda at, start=start, stop=stop: probabilities_slice(at, start, stop),
            lambda at, start=start, stop=stop: probabilities(at)[start:stop],
            angles,
            weights[start:stop],
        )


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 3), (0, 17), (16, 20)])
def test_a_wrong_slice_is_refused(start, stop):
    with pytest.raises(ConfigError) as caught:
        probabilities_slice(torch.zeros(2, 4), start, stop)
    assert str(caught.value) == f"a slice must have 0 <= start < stop <= 16, got start={start}, stop={stop}"


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (64, 64)])
def test_the_size_of_the_tiles_changes_nothing(tile, monkeypatch):
    monkeypatch.setattr(ladder_cut, "TILE", tile)
    assert_agrees(cut_probabilities, gates, *random_circuit(4, 9, seed=4))


def test_any_layout_of_the_upstream_gradient_is_read_right():
    angles, _ = random_circuit(3, 8, seed=5)
    for loss in (lambda p: p.sum() * p[1], lambda p: p.flip(0)[:99].sum(), lambda p: p.view(16, 16).T[2].sum()):
        expected = torch.autograd.grad(loss(gates(angles)), angles)[0]
        torch.testing.assert_close(
            torch.autograd.grad(loss(cut_probabilities(angles)), angles)[0], expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("n_layers", "terms"), [(1, 1), (2, 1), (3, 2), (8, 64)])
def test_the_number_of_terms_doubles_with_every_layer(n_layers, terms):
    angles, _ = random_circuit(n_layers, 11, seed=7)
    left, right, turn = product_terms(angles)
    assert left.shape == (2**3, 2, 2, terms)
    assert right.shape == (2, terms, 2**6)
    assert turn.shape == (2, 2, 2)


def test_only_the_angles_are_saved():
    angles, _ = random_circuit(8, 15, seed=8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        probabilities(angles)
    assert saved == [angles.shape]


def test_deep_circuits_take_the_route_whose_cost_does_not_double(monkeypatch):
    def refuse(*_):
        raise AssertionError("the cut")

    monkeypatch.setattr(ladder, "cut_probabilities", refuse)
    probabilities(torch.zeros(9, 15))
    probabilities(torch.zeros(2, 14))
    with pytest.raises(AssertionError, match="the cut"):
        probabilities(torch.zeros(8, 15))


def peak_memory(code):
    """Bytes at the peak of a fresh process that runs `code`."""
    program = f"import torch\nfrom qpeft.circuits import *\n{code}\n"
    program += "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return int(run.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.long
def test_memory_is_the_probabilities_and_their_gradient():
    few = peak_memory("a = torch.ones(4, 22, requires_grad=True); probabilities_slice(a, 5, 9).sum().backward()")
    many = peak_memory(
        "a = torch.ones(4, 22, requires_grad=True); torch.autograd.grad(probabilities(a), a, torch.ones(2**22))"
    )
    vector = 4 * 2**22
    assert many - few < 2.3 * vector
