"""Orthonormal columns of any width against recorded values and dense matrices built gate by gate."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from circuits import dense_two_design
from qpeft.circuits.columns import basis_columns
from qpeft.circuits.counting import column_qubits, count_orthogonal
from qpeft.circuits.orthogonal import orthogonal_columns
from qpeft.circuits.two_design_apply import two_design_apply
from qpeft.errors import CircuitError


def dense_recursion(angles, width, n_layers, with_v2=True, signs=None):
    """U (N, N) of the cosine-sine recursion; angles are taken from the iterator in the order of application."""
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


def reference(angles, width, n_layers, columns, construction):
    if construction == "pad":
        cut = dense_two_design(angles, (width - 1).bit_length(), n_layers)[:width, columns]
        upper = np.linalg.cholesky(cut.T @ cut).T
        return cut @ np.linalg.inv(upper)
    return dense_recursion(iter(angles), width, n_layers, construction == "qsd_full")[:, columns]


def ex(n):
    return 0.1 * torch.arange(1, n + 1, dtype=torch.float64)


RECORDED = {
    (3, "qsd"): [[0.9751330143, 0.1979236956, 0.0997086509]],
    (6, "qsd"): [
        [0.0692282723, 0.7110255052, 0.5906589861, 0.2529787934, 0.1178919492, 0.2507495917],
        [-0.613936975, 0.3940339046, -0.4040955104, -0.2286358732, -0.3214876662, 0.3858714931],
    ],
    (6, "pad"): [
        [0.6724848073, 0.4009635784, 0.5542327997, 0.1942125822, 0.1767836319, 0.1041509329],
        [-0.4383701205, 0.8584478954, -0.0671295521, -0.0775484719, -0.1125299774, 0.2184392599],
    ],
}


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_recorded_values(case):
    (width, construction), expected = case, torch.tensor(RECORDED[case], dtype=torch.float64)
    got = orthogonal_columns(ex(count_orthogonal(width, 1, construction)), width, 1, range(len(expected)), construction)
    torch.testing.assert_close(got.T, expected, rtol=0, atol=1e-10)


@st.composite
def cases(draw):
    width, construction = draw(st.integers(1, 70)), draw(st.sampled_from(["auto", "qsd", "qsd_full", "pad"]))
    most = min(width, 2 ** column_qubits(width, construction))
    return width, construction, draw(st.integers(1, 3)), draw(st.integers(1, min(most, 9))), draw(st.integers(0, 2**31))


def draw_angles(width, construction, n_layers, seed, shape=()):
    size = (*shape, count_orthogonal(width, n_layers, construction))
    return torch.tensor(np.random.default_rng(seed).uniform(-np.pi, np.pi, size))


@settings(max_examples=60)
@given(cases(), st.sampled_from(["first", "spread"]))
def test_constructions_equal_dense_matrices(case, kind):
    width, construction, n_layers, k, seed = case
    angles = draw_angles(width, construction, n_layers, seed, (2,))
    columns = basis_columns(kind, column_qubits(width, construction), k)
    try:
        got = orthogonal_columns(angles, width, n_layers, columns, construction)
    except CircuitError:  # angles that `pad` cannot use
        reject()
    name = {"auto": "qsd" if width.bit_count() < 4 else "pad"}.get(construction, construction)
    for row, u in zip(angles, got, strict=True):
        expected = reference(row.numpy(), width, n_layers, columns.numpy(), name)
        tolerance = 1e-6 if name == "pad" else 1e-10  # the Cholesky factor of a nearly dependent draw magnifies
        np.testing.assert_allclose(u.numpy(), expected, rtol=0, atol=tolerance)
    alone = orthogonal_columns(angles[1], width, n_layers, columns, construction)
    np.testing.assert_allclose(alone.numpy(), expected, rtol=0, atol=tolerance)


@settings(max_examples=40)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_circuit_applied_to_blocks_equals_its_matrix(n_qubits, n_layers, k, random_signs, seed):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-np.pi, np.pi, (2, count_orthogonal(2**n_qubits, n_layers)))
    x = rng.normal(size=(2, 2**n_qubits, k))
    signs = rng.choice([-1.0, 1.0], (2 * n_layers, 2**n_qubits)) if random_signs and n_qubits else None
    given_signs = None if signs is None else torch.tensor(signs)
    got = two_design_apply(torch.tensor(angles), n_qubits, n_layers, torch.tensor(x), given_signs)
    expected = [dense_two_design(row, n_qubits, n_layers, signs) @ block for row, block in zip(angles, x, strict=True)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)
    single = two_design_apply(torch.tensor(angles).float(), n_qubits, n_layers, torch.tensor(x).float(), given_signs)
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "construction"), [(16, "auto"), (20, "qsd"), (21, "qsd_full"), (21, "pad")])
def test_signs_replace_cz_in_every_circuit(width, construction):
    rng = np.random.default_rng(5)
    table = {n: rng.choice([-1.0, 1.0], (4, 2**n)) if n else np.ones((4, 1)) for n in range(6)}
    angles = draw_angles(width, construction, 2, seed=2)
    got = orthogonal_columns(angles, width, 2, [0, 3], construction, lambda n: torch.tensor(table[n]))
    if construction == "pad":
        cut = dense_two_design(angles.numpy(), 5, 2, table[5])[:width, [0, 3]]
        expected = cut @ np.linalg.inv(np.linalg.cholesky(cut.T @ cut).T)
    else:
        expected = dense_recursion(iter(angles.numpy()), width, 2, construction == "qsd_full", table)[:, [0, 3]]
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("width", "construction", "n_layers"),
    [(8, "auto", 1), (8, "auto", 3), (12, "qsd", 1), (13, "qsd", 2), (13, "qsd_full", 1), (11, "pad", 2)],
)
def test_gradients_against_finite_differences(width, construction, n_layers):
    angles = draw_angles(width, construction, n_layers, seed=3, shape=(2,)).requires_grad_()
    columns = basis_columns("spread", column_qubits(width, construction), 3)
    f = partial(orthogonal_columns, width=width, n_layers=n_layers, columns=columns, construction=construction)
    assert torch.autograd.gradcheck(f, (angles,))


@pytest.mark.parametrize("n_qubits", [1, 3, 5, 6, 9, 10])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_gradients_of_a_block_against_finite_differences(n_qubits, n_layers):
    rng = np.random.default_rng(n_qubits)
    angles = torch.tensor(rng.uniform(-np.pi, np.pi, (2, count_orthogonal(2**n_qubits, n_layers)))).requires_grad_()
    x = torch.tensor(rng.normal(size=(2, 2**n_qubits, 2))).requires_grad_()
    signs = torch.tensor(rng.choice([-1.0, 1.0], (2 * n_layers, 2**n_qubits)))
    weights = torch.tensor(rng.normal(size=(2**n_qubits, 2)))
    for given_signs in (None, signs):

        def f(angles, x, given_signs=given_signs):
            return (two_design_apply(angles, n_qubits, n_layers, x, given_signs) * weights).sum((1, 2))

        assert torch.autograd.gradcheck(f, (angles, x), fast_mode=n_qubits > 5)
