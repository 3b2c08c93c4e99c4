"""The three routes of QPA's circuit: agreement, precision, memory, slices, refused input."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, ladder, ladder_cut, probabilities, probabilities_slice
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.ladder_cut import cut_probabilities, cut_slice
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.errors import ConfigError

ROUTES = (fold_probabilities, group_probabilities)


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
    found, expected = (value_and_gradient(each, angles, weights) for each in (route, reference))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(st.integers(1, 10), st.integers(2, 13), st.integers(0, 2**31))
def test_routes_agree_with_the_gates(n_layers, n_qubits, seed):
    circuit = random_circuit(n_layers, n_qubits, seed)
    assert_agrees(fold_probabilities, gates, *circuit)
    assert_agrees(group_probabilities, gates, *circuit)
    assert_agrees(probabilities, gates, *circuit)
    if n_qubits >= 4:
        assert_agrees(cut_probabilities, gates, *circuit)


@pytest.mark.parametrize("n_qubits", [14, 16, 17])
def test_routes_agree_for_sizes_of_other_routes(n_qubits):
    assert_agrees(fold_probabilities, group_probabilities, *random_circuit(2, n_qubits, seed=n_qubits))


@pytest.mark.parametrize(("route", "n_qubits"), [(r, n) for r in ROUTES for n in (2, 7, 12)] + [(probabilities, 18)])
def test_float32_has_the_precision_of_its_dtype(route, n_qubits):
    angles, weights = random_circuit(8, n_qubits, seed=1)
    single = angles.detach().float().requires_grad_()
    found = value_and_gradient(route, single, weights.float())
    assert {tensor.dtype for tensor in found} == {torch.float32}
    for one, expected in zip(found, value_and_gradient(route, angles, weights), strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=2e-6)
        assert (one - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("route", [*ROUTES, cut_probabilities])
def test_upstream_gradient_may_have_any_layout(route):
    angles, _ = random_circuit(3, 6, seed=3)
    losses = [lambda p: p[1::3].square().sum(), lambda p: p.flip(0)[:9].sum() * p[1], lambda p: p.view(8, 8).T[2].sum()]
    for loss in losses:
        found, expected = (torch.autograd.grad(loss(each(angles)), angles)[0] for each in (route, gates))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def saved_numbers(route, angles):
    """Number of entries saved for backward, by their storage."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        p = route(angles)
    del p
    return sum(storages.values())


@pytest.mark.parametrize("n_layers", [1, 8, 64])
def test_groups_save_one_state_for_any_depth(n_layers):
    angles, _ = random_circuit(n_layers, 13, seed=4)
    assert saved_numbers(probabilities, angles) == 2**13 + angles.numel()


def test_fold_saves_one_small_state_per_layer():
    angles, _ = random_circuit(8, 10, seed=4)
    matrices = 3 * 2**10  # W_A and both sectors of W_B
    assert saved_numbers(fold_probabilities, angles) <= 9 * 2**10 + 8 * matrices
    assert saved_numbers(fold_probabilities, angles.detach()) == 0


@pytest.mark.parametrize("n_qubits", [5, 13])
def test_nothing_is_recorded_without_gradients(n_qubits):
    angles, _ = random_circuit(3, n_qubits, seed=5)
    recorded = probabilities(angles)
    with torch.no_grad():
        assert not probabilities(angles).requires_grad
    with torch.inference_mode():
        inferred = probabilities(angles)
    assert recorded.requires_grad
    assert torch.equal(inferred.clone(), recorded.detach())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_angles_are_located(value):
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
def test_invalid_tensors_are_refused(angles, message):
    with pytest.raises(ConfigError) as caught:
        probabilities(angles)
    assert str(caught.value) == message


# the cut


@pytest.mark.parametrize(("n_qubits", "n_layers"), [(15, 1), (16, 8), (17, 9), (18, 3)])
def test_cut_agrees_with_the_groups_for_large_circuits(n_qubits, n_layers):
    assert_agrees(probabilities, group_probabilities, *random_circuit(n_layers, n_qubits, seed=n_qubits))


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(4, 12), st.data())
def test_slice_equals_full_result(n_layers, n_qubits, data):
    start = data.draw(st.integers(0, 2**n_qubits - 1))
    stop = data.draw(st.integers(start + 1, 2**n_qubits))
    angles, weights = random_circuit(n_layers, n_qubits, seed=start)
    assert_agrees(lambda at: cut_slice(at, start, stop), lambda at: gates(at)[start:stop], angles, weights[start:stop])


@pytest.mark.parametrize("n_qubits", [1, 6, 13, 15, 16])
def test_slices_of_circuits_of_every_size(n_qubits):
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
def test_invalid_slice_is_refused(start, stop):
    with pytest.raises(ConfigError) as caught:
        probabilities_slice(torch.zeros(2, 4), start, stop)
    assert str(caught.value) == f"a slice must have 0 <= start < stop <= 16, got start={start}, stop={stop}"


@pytest.mark.parametrize(
    ("n_layers", "n_qubits", "needed"),
    [
        (2, 33, "the probabilities of 33 qubits need a tensor of about 2^33 elements"),
        (60, 100, "the probabilities of 100 qubits need a tensor of about 2^100 elements"),
        (1, 20000, "the probabilities of 20000 qubits need a tensor of about 2^20000 elements"),
    ],
)
def test_more_probabilities_than_fit_in_memory_are_refused(n_layers, n_qubits, needed):
    with pytest.raises(ConfigError) as caught:
        probabilities(torch.zeros(n_layers, n_qubits))
    assert str(caught.value) == (
        f"{needed}, more than the simulator's limit of 2^32; use fewer qubits, or probabilities_slice with at most "
        f"{n_qubits // 2 + 1} layers"
    )


@pytest.mark.parametrize(
    ("n_layers", "n_qubits", "stop", "exponent"),
    [(2, 64, 1, 34), (16, 36, 1, 33), (2, 40, 2**33, 33), (1, 20000, 1, 10002), (60, 100, 1, 100)],
)
def test_slice_that_needs_too_much_memory_is_refused(n_layers, n_qubits, stop, exponent):
    with pytest.raises(ConfigError, match=f"need a tensor of about 2\\^{exponent} elements, more than"):
        probabilities_slice(torch.zeros(n_layers, n_qubits), 0, stop)


def test_slice_of_more_qubits_than_probabilities_can_compute():
    start = 2**40 - 4
    assert probabilities_slice(torch.zeros(2, 40), 0, 3).tolist() == [1, 0, 0]
    assert probabilities_slice(torch.zeros(2, 40), start, 2**40).tolist() == [0] * 4


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (64, 64)])
def test_size_of_the_tiles_does_not_change_results(tile, monkeypatch):
    monkeypatch.setattr(ladder_cut, "TILE", tile)
    assert_agrees(cut_probabilities, gates, *random_circuit(4, 9, seed=4))


def test_cut_saves_only_the_angles():
    angles, _ = random_circuit(8, 15, seed=8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        probabilities(angles)
    assert saved == [angles.shape]


def test_deep_circuits_do_not_take_the_cut(monkeypatch):
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
def test_memory_of_the_cut_is_that_of_probabilities_and_gradient():
    few = peak_memory("a = torch.ones(4, 22, requires_grad=True); probabilities_slice(a, 5, 9).sum().backward()")
    many = peak_memory(
        "a = torch.ones(4, 22, requires_grad=True); torch.autograd.grad(probabilities(a), a, torch.ones(2**22))"
    )
    vector = 4 * 2**22
    assert many - few < 2.3 * vector
