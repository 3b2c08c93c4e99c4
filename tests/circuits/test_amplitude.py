"""QAA's circuits: symmetries, shapes, gradients, statistics, refused input."""

from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import (
    Ansatz,
    amplitude_expectations,
    amplitude_probabilities,
    amplitude_qubits,
    dead_angles,
)
from qpeft.errors import ConfigError, UnsupportedTypeError

BLOCKS = {"square": 3, "qaa": 1, "rxyz": 3}
every_ansatz = pytest.mark.parametrize("ansatz", BLOCKS)
every_readout = pytest.mark.parametrize("read", [amplitude_expectations, amplitude_probabilities])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def random_angles(ansatz, width, n_layers=1, dtype=torch.float64):
    shape = Ansatz(ansatz, amplitude_qubits(width), n_layers).angle_shape
    return ((torch.rand(shape, dtype=torch.float64) * 2 - 1) * pi).to(dtype)


@pytest.mark.parametrize(("width", "expected"), [(1, 1), (2, 1), (3, 2), (4, 2), (768, 10), (1024, 10), (65536, 16)])
def test_qubits_of_a_width(width, expected):
    assert amplitude_qubits(width) == expected


@every_ansatz
@pytest.mark.parametrize(("width", "n_layers"), [(2, 1), (6, 1), (32, 2), (100, 1)])
def test_dead_angles_are_those_without_a_gradient(ansatz, width, n_layers):
    angles = random_angles(ansatz, width, n_layers).requires_grad_()
    gradient = torch.zeros_like(angles)
    for read in (amplitude_expectations, amplitude_probabilities):
        for x in torch.randn(4, 1, width, dtype=torch.float64):
            features = read(x, angles, ansatz).sum(0)[: amplitude_qubits(width)]
            for feature in features:
                gradient += torch.autograd.grad(feature, angles, retain_graph=True)[0].abs()
    assert (gradient == 0).sum() == dead_angles(ansatz, amplitude_qubits(width), n_layers)


@every_readout
@every_ansatz
@both_dtypes
@pytest.mark.parametrize(("width", "n_layers"), [(1, 1), (7, 1), (64, 2), (300, 1)])
def test_features_do_not_depend_on_sign_and_norm_of_an_input(read, ansatz, dtype, width, n_layers):
    x, angles = torch.randn(3, width, dtype=dtype), random_angles(ansatz, width, n_layers, dtype)
    found = read(x, angles, ansatz)
    assert torch.equal(read(-x, angles, ansatz), found)
    for factor in (7, -3, 1e-5):
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(read(factor * x, angles, ansatz), found, rtol=0, atol=tolerance)


@every_readout
@every_ansatz
@pytest.mark.parametrize(("width", "n_layers"), [(5, 1), (5, 2), (200, 1)])
def test_input_of_zeros_has_zero_features_and_gradients(read, ansatz, width, n_layers):
    x = torch.zeros(2, width, requires_grad=True)
    angles = random_angles(ansatz, width, n_layers, torch.float32).requires_grad_()
    found = read(x, angles, ansatz)
    found.sum().backward()
    assert not found.any()
    assert not x.grad.any()
    assert not angles.grad.any()


@every_ansatz
def test_tiny_input_is_divided_by_the_smallest_norm(ansatz):
    x, angles = torch.randn(2, 5, dtype=torch.float64), random_angles(ansatz, 5)
    x /= x.norm(dim=-1, keepdim=True)
    found = amplitude_expectations(x * 1e-9, angles, ansatz)
    torch.testing.assert_close(found, amplitude_expectations(x, angles, ansatz) / 100, rtol=1e-9, atol=0)
    tiny = (x * 1e-9).requires_grad_()
    amplitude_expectations(tiny, angles, ansatz).sum().backward()  # homogeneous of degree two there
    torch.testing.assert_close((tiny.grad * tiny).sum(), 2 * found.sum(), rtol=1e-9, atol=0)


@every_readout
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_values_affect_only_their_token(read, bad):
    x, angles = torch.randn(3, 5), random_angles("square", 5, dtype=torch.float32)
    clean = read(x, angles)
    x[1, 2] = bad
    found = read(x, angles)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@every_readout
@every_ansatz
def test_shapes_of_inputs_and_results(read, ansatz):
    angles = random_angles(ansatz, 6)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    found = read(x, angles, ansatz)
    assert found.shape == (2, 3, 3 if read is amplitude_expectations else 8)
    assert found.is_contiguous()
    torch.testing.assert_close(read(x[1, 2], angles, ansatz), found[1, 2], rtol=0, atol=1e-12)
    strided = x.mT.contiguous().mT
    assert torch.equal(read(strided, angles, ansatz), found)
    none = x[:0].requires_grad_()
    nothing = read(none, angles.requires_grad_(), ansatz)
    nothing.sum().backward()
    assert nothing.shape == (0, *found.shape[1:])
    assert none.grad.shape == none.shape
    assert not angles.grad.any()


@every_ansatz
@pytest.mark.parametrize("wanted", ["x", "angles"])
def test_gradient_is_the_same_if_requested_alone(ansatz, wanted):
    given_ = {"x": torch.randn(4, 40, dtype=torch.float64), "angles": random_angles(ansatz, 40, 2)}
    for tensor in given_.values():
        tensor.requires_grad_()
    weights = torch.randn(4, 6, dtype=torch.float64)
    amplitude_expectations(**given_, ansatz=ansatz).backward(weights)
    alone = {name: tensor.detach().requires_grad_(name == wanted) for name, tensor in given_.items()}
    amplitude_expectations(**alone, ansatz=ansatz).backward(weights)
    torch.testing.assert_close(alone[wanted].grad, given_[wanted].grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("ansatz", "low", "high"), [("qaa", 0.97, 1.03), ("square", 0.66, 0.84)])
def test_variance_of_features_of_isotropic_inputs(ansatz, low, high):
    x = torch.randn(4000, 64, dtype=torch.float64)
    variances = [33 * amplitude_expectations(x, random_angles(ansatz, 64), ansatz).var(0).mean() for _ in range(20)]
    assert low < sum(variances) / 20 < high


@every_ansatz
def test_rank_of_the_features(ansatz):
    x, angles = torch.randn(2000, 32, dtype=torch.float64), random_angles(ansatz, 32)
    for read, rank in ((amplitude_expectations, 5), (amplitude_probabilities, 31)):
        features = read(x, angles, ansatz)
        assert torch.linalg.matrix_rank(features - features.mean(0), rtol=1e-9) == rank


@settings(max_examples=25)
@given(st.sampled_from(list(BLOCKS)), st.integers(1, 3), st.integers(1, 600), st.integers(0, 2**31))
def test_probabilities_sum_to_one_and_give_the_expectations(ansatz, n_layers, width, seed):
    torch.manual_seed(seed)
    x, angles = torch.randn(3, width, dtype=torch.float64), random_angles(ansatz, width, n_layers)
    p, z = amplitude_probabilities(x, angles, ansatz), amplitude_expectations(x, angles, ansatz)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(3, dtype=p.dtype), rtol=0, atol=1e-12)
    for wire in range(z.shape[-1]):
        halves = p.view(3, 2**wire, 2, -1).sum((1, 3))
        torch.testing.assert_close(z[:, wire], halves[:, 0] - halves[:, 1], rtol=0, atol=1e-12)


@every_readout
@pytest.mark.parametrize(
    ("width", "shape", "ansatz", "message"),
    [
        (4, (1, 3, 2), "ring", "unknown ansatz 'ring'; choose one of square, qaa, rxyz"),
        (4, (1, 3, 2), "ry_ladder", "unknown ansatz 'ry_ladder'; choose one of square, qaa, rxyz"),
        (4, (0, 3, 2), "square", "n_layers must be at least 1, got 0"),
        (
            4,
            (1, 3, 2),
            "qaa",
            "'qaa' on inputs of width 4 needs angles of shape (n_layers, 1, 2), got (1, 3, 2)",
        ),
        (5, (6,), "square", "'square' on inputs of width 5 needs angles of shape (n_layers, 3, 3), got (6,)"),
        (0, (1, 3, 1), "square", "an input must be at least 1 wide, got 0"),
        (65537, (1, 3, 17), "square", "QAA needs n = 17 qubits for d_in = 65537; the simulator limit is 16."),
    ],
)
def test_invalid_input_is_refused(read, width, shape, ansatz, message):
    with pytest.raises(ConfigError) as caught:
        read(torch.ones(1, width), torch.ones(shape), ansatz)
    assert str(caught.value) == message


@every_readout
def test_other_dtypes_and_devices_are_refused(read):
    x, angles = torch.ones(2, 4), torch.ones(1, 3, 2)
    with pytest.raises(UnsupportedTypeError, match=r"x must be float32 or float64, got torch.bfloat16"):
        read(x.bfloat16(), angles)
    with pytest.raises(UnsupportedTypeError, match=r"angles must be float32 or float64, got torch.int64"):
        read(x, angles.long())
    with pytest.raises(ConfigError, match=r"got torch.float64 on cpu and torch.float32 on cpu"):
        read(x.double(), angles)
    with pytest.raises(ConfigError, match=r"got torch.float32 on cpu and torch.float32 on meta"):
        read(x, angles.to("meta"))
    with pytest.raises(ConfigError, match="got a scalar"):
        read(x[0, 0], angles)


@every_readout
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite_inputs_reach_only_their_row_and_angles_are_refused(read, value):
    x, angles = torch.ones(2, 4), torch.ones(1, 3, 2)
    expected = read(x, angles)[1]
    x[0, 1] = value
    found = read(x, angles)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], expected)
    angles[0, 2, 0] = value
    with pytest.raises(ConfigError, match=r"^circuit angles contain NaN or Inf$"):
        read(x, angles)
