"""Orthonormal columns, of circuits and of the Lie-algebra family, against dense matrices; counts,
refused columns.
"""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from circuits import dense_two_design
from qpeft.circuits.lie import count_lie, lie_columns, lie_matrix
from qpeft.circuits.orthogonal import (
    basis_columns,
    column_qubits,
    count_orthogonal,
    orthogonal_batches,
    orthogonal_columns,
    resolve_construction,
)
from qpeft.errors import CircuitError


def dense_recursion(angles, width, n_layers, with_v2=True, signs=None):
    """U (N, N) of the cosine-sine recursion; angles are taken from the iterator in the order of
    application.
    """
    if width & (width - 1) == 0:
        n_qubits = width.bit_length() - 1
        own = [next(angles) for _ in range(count_orthogonal(width, n_layers))]
        return dense_two_design(own, n_qubits, n_layers, signs and signs[n_qubits])
    n1 = 2 ** int(math.log2(width))
    n2 = width - n1
    inner = partial(dense_recursion, angles, n_layers=n_layers, signs=signs)
    v = scipy.linalg.block_diag(inner(width=n1), inner(width=n2) if with_v2 else np.eye(n2))
    c = [next(angles) for _ in range(1 + math.ceil(math.log2(n2)))]
    phi = [c[0] + sum(c[1 + b] for b in range(len(c) - 1) if j >> b & 1) for j in range(n2)]
    cs = np.eye(width)
    for j, half in enumerate(np.array(phi) / 2):
        cs[j, j] = cs[n1 + j, n1 + j] = np.cos(half)
        cs[n1 + j, j], cs[j, n1 + j] = np.sin(half), -np.sin(half)
    return scipy.linalg.block_diag(inner(width=n1), inner(width=n2)) @ cs @ v


def reference(angles, width, n_layers, columns, construction, signs=None):
    if construction == "pad":
        n_qubits = (width - 1).bit_length()
        cut = dense_two_design(angles, n_qubits, n_layers, signs and signs[n_qubits])[
            :width, columns
        ]
        upper = np.linalg.cholesky(cut.T @ cut).T
        return cut @ np.linalg.inv(upper)
    return dense_recursion(iter(angles), width, n_layers, False, signs)[:, columns]


@st.composite
def cases(draw):
    width = draw(st.integers(1, 70))
    construction = draw(st.sampled_from(["auto", "qsd", "pad"]))
    most = min(width, 2 ** column_qubits(width, construction))
    return (
        width,
        construction,
        draw(st.integers(1, 3)),
        draw(st.integers(1, min(most, 9))),
        draw(st.integers(0, 2**31)),
    )


def draw_angles(width, construction, n_layers, seed, shape=()):
    size = (*shape, count_orthogonal(width, n_layers, construction))
    return torch.tensor(np.random.default_rng(seed).uniform(-np.pi, np.pi, size))


@settings(max_examples=60)
@given(cases(), st.sampled_from(["first", "spread"]), st.booleans())
def test_constructions_equal_dense_matrices(case, kind, has_signs):
    """Also where signs replace the CZ gates."""
    width, construction, n_layers, k, seed = case
    rng = np.random.default_rng(seed)
    table = {
        n: rng.choice([-1.0, 1.0], (2 * n_layers, 2**n)) if n else np.ones((2 * n_layers, 1))
        for n in range(8)
    }
    signs = (lambda n: torch.tensor(table[n])) if has_signs else None
    angles = draw_angles(width, construction, n_layers, seed, (2,))
    columns = basis_columns(kind, column_qubits(width, construction), k)
    try:
        got = orthogonal_columns(angles, width, n_layers, columns, construction, signs)
    except CircuitError:  # angles that `pad` cannot use
        reject()
    name = {"auto": "qsd" if width.bit_count() < 4 else "pad"}.get(construction, construction)
    for row, u in zip(angles, got, strict=True):
        expected = reference(
            row.numpy(), width, n_layers, list(columns), name, table if has_signs else None
        )
        # the Cholesky factor of a nearly dependent draw magnifies
        tolerance = 1e-6 if name == "pad" else 1e-10
        np.testing.assert_allclose(
            u.numpy(),
            expected,
            rtol=0,
            atol=tolerance,
            strict=True,
        )
    alone = orthogonal_columns(angles[1], width, n_layers, columns, construction, signs)

    np.testing.assert_allclose(
        alone.numpy(),
        expected,
        rtol=0,
        atol=tolerance,
        strict=True,
    )


def test_widths_in_one_batch_equal_each_alone():
    """Circuits of equal numbers of qubits run together: those of 12, 20 and 21 are 2, 3 and 4
    qubits.
    """
    signs = {n: torch.where(torch.rand(4, 2**n) < 0.5, -1.0, 1.0) for n in range(6)}
    batches = [
        (draw_angles(width, "qsd", 2, width, (m,)).requires_grad_(), width, columns)
        for width, m, columns in (
            (12, 2, [0, 2]),
            (20, 1, [1, 0]),
            (21, 3, [0, 2, 5]),
            (16, 2, [0, 2]),
            (8, 1, [1]),
        )
    ]
    together = orthogonal_batches(batches, 2, "qsd", signs.__getitem__)
    for (angles, width, columns), found in zip(batches, together, strict=True):
        alone = orthogonal_columns(angles, width, 2, columns, "qsd", signs.__getitem__)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-14)
        losses = (u[..., 0, :].square().sum() for u in (found, alone))
        slopes = [torch.autograd.grad(loss, angles, retain_graph=True) for loss in losses]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "width, construction, n_layers",
    [
        (8, "auto", 1),
        (8, "auto", 3),
        (12, "qsd", 1),
        (13, "qsd", 2),
        (11, "pad", 2),
    ],
)
def test_gradients_against_finite_differences(width, construction, n_layers):
    """For the angles of two matrices at once."""
    angles = draw_angles(width, construction, n_layers, seed=3, shape=(2,)).requires_grad_()
    columns = basis_columns("spread", column_qubits(width, construction), 3)
    f = partial(
        orthogonal_columns,
        width=width,
        n_layers=n_layers,
        columns=columns,
        construction=construction,
    )

    assert torch.autograd.gradcheck(f, (angles,))


COUNTS = {  # L = 1, 2, 3, 4
    768: {"qsd": [81, 127, 173, 219], "pad": [28, 46, 64, 82]},
    896: {"qsd": [150, 234, 318, 402], "pad": [28, 46, 64, 82]},
    3072: {"qsd": [101, 159, 217, 275], "pad": [34, 56, 78, 100]},
    50257: {"qsd": [642, 998, 1354, 1710], "pad": [46, 76, 106, 136]},
    512: {name: [25, 41, 57, 73] for name in ("auto", "qsd", "pad")},
}
SMALL = {1: 0, 2: 1, 3: 3, 5: 9, 6: 11, 7: 14}


def test_counts_of_the_constructions():
    for width, of_name in COUNTS.items():
        for name, counts in of_name.items():
            assert [count_orthogonal(width, n_layers, name) for n_layers in (1, 2, 3, 4)] == counts
    for width, count in SMALL.items():
        assert count_orthogonal(width, 1, "qsd") == count


def test_construction_selected_by_auto():
    names = {
        1: "circuit",
        64: "circuit",
        768: "qsd",
        896: "qsd",
        14336: "qsd",
        11008: "pad",
        50257: "pad",
    }
    assert {width: resolve_construction(width, "auto") for width in names} == names
    assert {width: column_qubits(width) for width in names} == dict(
        zip(names, (0, 6, 9, 9, 13, 14, 16), strict=True)
    )
    assert column_qubits(768, "pad") == 10


@pytest.mark.parametrize("kind", ["qsd", "pad", "exp", "cayley"])
@pytest.mark.parametrize("width", [768, 2304, 50257])
def test_float32_columns_are_orthonormal(width, kind):
    """In single precision, and for angles far beyond one turn."""
    draw = torch.Generator().manual_seed(width)
    if kind in ("qsd", "pad"):
        angles = 7 * torch.rand(count_orthogonal(width, 2, kind), generator=draw)
        u = orthogonal_columns(
            angles, width, 2, basis_columns("spread", column_qubits(width, kind), 16), kind
        )
    else:
        u = lie_columns(0.2 * torch.randn(width, 2, generator=draw), 16, kind)
    assert u.shape == (width, 16)
    assert u.dtype == torch.float32
    assert (u.double().T @ u.double() - torch.eye(16)).abs().max() <= 1e-5


def test_pad_refuses_columns_in_the_dropped_rows():
    angles = torch.zeros(count_orthogonal(5, 1, "pad"), dtype=torch.float64)
    angles[0] = math.pi - 1e-4  # wire 0 to 1: almost everything is below the fifth row
    message = (
        r"pad construction for width 5 is nearly rank deficient \(condition \d\.\de\+\d+\); redraw"
        r" the angles"
    )

    with pytest.raises(CircuitError, match=message + r" or use construction='qsd'$"):
        orthogonal_columns(angles, 5, 1, [0, 1], "pad")

    for columns in (
        [0, 6],
        [6],
    ):  # without rotations a column stays where it is: nothing is left of the sixth
        with pytest.raises(CircuitError, match=r"condition inf"):
            orthogonal_columns(0 * angles, 5, 1, columns, "pad")


@pytest.mark.parametrize(
    "n_qubits, k, expected",
    [
        (8, 2, [0, 85]),
        (8, 4, [0, 85, 170, 255]),
        (5, 3, [0, 21, 10]),
        (9, 8, [0, 73, 146, 219, 292, 365, 438, 511]),
        (0, 1, [0]),
    ],
)
def test_spread_columns(n_qubits, k, expected):
    assert list(basis_columns("spread", n_qubits, k)) == expected
    assert list(basis_columns("first", n_qubits, k)) == list(range(k))


# -- the Lie-algebra family


def skew(b):
    """A (N, N) from the strictly lower triangle of b (N, K')."""
    a = np.zeros((len(b), len(b)))
    a[:, : b.shape[1]] = np.tril(b, -1)
    return a - a.T


def cayley(a):
    return np.linalg.solve(np.eye(len(a)) - a / 2, np.eye(len(a)) + a / 2)


DENSE = {"exp": scipy.linalg.expm, "cayley": cayley}
every_map = pytest.mark.parametrize("lie_map", DENSE)


def draw_lie(n, rank, norm, seed=0):
    """b (N, K') float64, arbitrary above the diagonal, such that A has spectral norm `norm`."""
    b = np.random.default_rng(seed).normal(size=(n, rank))
    return torch.tensor(b * norm / np.linalg.norm(skew(b), 2))


@every_map
@settings(max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 40),
    st.floats(0.01, 19),
    st.integers(0, 2**31),
)
def test_lie_columns_equal_dense_matrix_functions(lie_map, rank, more, rows, norm, seed):
    n = rank + more + rows
    k = rank + more
    b = draw_lie(n, rank, norm, seed)
    expected = DENSE[lie_map](skew(b.numpy()))[:, :k]

    np.testing.assert_allclose(
        lie_columns(b, k, lie_map).numpy(),
        expected,
        rtol=0,
        atol=1e-10,
    )

    batch = lie_columns(torch.stack([b, -b]), k, lie_map)
    np.testing.assert_allclose(
        batch[1].numpy(), DENSE[lie_map](-skew(b.numpy()))[:, :k], rtol=0, atol=1e-10
    )


@every_map
@pytest.mark.parametrize("norm", [0.0, 1.5])
def test_lie_gradients_against_finite_differences(lie_map, norm):
    b = draw_lie(7, 2, 1.0) * norm  # zero: phi's matrix is singular there
    for start in (b, torch.stack([b, -b])):
        assert torch.autograd.gradcheck(
            partial(lie_columns, k=3, lie_map=lie_map), (start.requires_grad_(),)
        )


def test_lie_packing_is_column_by_column():
    """The entries below the diagonal, so that saved angles keep their meaning."""
    b = lie_matrix(torch.arange(1.0, 8.0), 5, 2)
    assert b.tolist() == [[0, 0], [1, 0], [2, 5], [3, 6], [4, 7]]
    assert lie_matrix(torch.ones(2, 3, 7), 5, 2).shape == (2, 3, 5, 2)
    assert [count_lie(*size) for size in ((16, 4), (1024, 1), (5, 2), (2, 1))] == [54, 1023, 7, 1]
