"""`two_design_columns` and its counts: columns, period, orthonormality, refused input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.circuits import basis_columns, count_angles, two_design_columns
from qpeft.errors import ConfigError, UnsupportedTypeError


def random_angles(n_qubits, n_layers, n_modules, dtype=torch.float32):
    draw = torch.Generator().manual_seed(n_qubits)
    shape = (n_modules, count_angles("two_design", n_qubits, n_layers))
    return ((torch.rand(shape, generator=draw, dtype=torch.float64) * 2 - 1) * torch.pi).to(dtype)


def test_counts_of_constructions():
    assert count_angles("qsd", n_layers=2, width=768) == 127
    assert count_angles("auto", n_layers=1, width=1024) == 28


@pytest.mark.parametrize(
    ("n_qubits", "k", "expected"),
    [
        (8, 2, [0, 85]),
        (8, 4, [0, 85, 170, 255]),
        (5, 3, [0, 21, 10]),
        (9, 8, [0, 73, 146, 219, 292, 365, 438, 511]),
        (0, 1, [0]),
    ],
)
def test_spread_columns(n_qubits, k, expected):
    assert basis_columns("spread", n_qubits, k).tolist() == expected


@given(st.integers(0, 8), st.data())
def test_columns_are_distinct_indices(n_qubits, data):
    k = data.draw(st.integers(1, 2**n_qubits))
    spread = basis_columns("spread", n_qubits, k).tolist()
    assert len(set(spread)) == k
    assert set(spread) <= set(range(2**n_qubits))
    assert basis_columns("first", n_qubits, k).tolist() == list(range(k))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("last", 3, 2), "unknown columns 'last'; choose one of first, spread"),
        (("first", 2, 5), "a circuit on 2 qubits has 4 columns; choose 1 to 4 of them, got 5"),
        (("spread", 2, 0), "a circuit on 2 qubits has 4 columns; choose 1 to 4 of them, got 0"),
    ],
)
def test_invalid_columns_are_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        basis_columns(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("signs", [None, torch.ones(4, 32)], ids=["cut", "layers"])
def test_period_is_four_pi(signs):
    angles = random_angles(5, 2, 1, torch.float64)[0]
    u = two_design_columns(angles, 5, 2, range(4), signs)
    for slot in (0, 5, len(angles) - 1):
        turn = 2 * torch.pi * torch.eye(len(angles), dtype=angles.dtype)[slot]
        once, twice = (two_design_columns(angles + n * turn, 5, 2, range(4), signs) for n in (1, 2))
        torch.testing.assert_close(once, -u, rtol=0, atol=1e-12)
        torch.testing.assert_close(twice, u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("signs", [None, torch.ones(8, 4096)], ids=["cut", "layers"])
def test_columns_are_orthonormal_in_float32(signs):
    u = two_design_columns(random_angles(12, 4, 1)[0], 12, 4, basis_columns("spread", 12, 32), signs).double()
    assert (u.mT @ u - torch.eye(32)).abs().max() <= 1e-5


def test_circuit_without_qubits_is_the_matrix_one():
    angles = torch.zeros(3, 0, requires_grad=True)
    u = two_design_columns(angles, 0, 2, [0])
    assert torch.equal(u, torch.ones(3, 1, 1))
    u.sum().backward()
    assert angles.grad.shape == (3, 0)


ANGLES = torch.zeros(7)  # 3 qubits, 1 layer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ANGLES, 3, 0, [0]), "n_layers must be at least 1, got 0"),
        ((ANGLES, -1, 1, [0]), "n_qubits must be at least 1, got -1"),
        ((ANGLES, 4, 1, [0]), "4 qubits and 1 layers need angles of shape (10,) or (M, 10), got (7,)"),
        ((ANGLES[None, None], 3, 1, [0]), "3 qubits and 1 layers need angles of shape (7,) or (M, 7), got (1, 1, 7)"),
        ((ANGLES, 3, 1, [0, 8]), "columns must be one or more indices from 0 to 7, got [0, 8]"),
        ((ANGLES, 3, 1, torch.tensor([-1])), "columns must be one or more indices from 0 to 7, got [-1]"),
        ((ANGLES, 3, 1, []), "columns must be one or more indices from 0 to 7, got []"),
        ((ANGLES, 3, 1, [0], torch.ones(2, 4)), "signs must have shape (2, 8), got (2, 4)"),
        (
            (torch.zeros(190), 64, 1, [0]),
            "1 columns of 64 qubits need a tensor of about 2^64 elements, more than the simulator's limit of 2^32; use "
            "fewer qubits or fewer columns",
        ),
        ((ANGLES.log(), 3, 1, [0]), "circuit angles contain NaN or Inf"),
    ],
)
def test_invalid_input_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        two_design_columns(*arguments)
    assert str(caught.value) == message


def test_basis_indices_beyond_int64_are_refused():
    with pytest.raises(ConfigError, match=r"^indices of basis states are computed for at most 62 qubits, got 64$"):
        basis_columns("spread", 64, 4)
    with pytest.raises(ConfigError, match=r"columns need a tensor of about 2\^61 elements"):
        basis_columns("first", 62, 2**61)


def test_other_dtypes_are_refused():
    with pytest.raises(UnsupportedTypeError) as caught:
        two_design_columns(ANGLES.half(), 3, 1, [0])
    assert str(caught.value) == "angles must be float32 or float64, got torch.float16"


@pytest.mark.parametrize("sizes", [{}, {"n_qubits": 3, "width": 8}])
def test_count_needs_exactly_one_size(sizes):
    with pytest.raises(ConfigError, match="either by n_qubits or by width"):
        count_angles("two_design", **sizes)
