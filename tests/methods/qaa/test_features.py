"""QAA's features and their classical controls: what they are, their variance, what they cannot see."""

import math

import pytest
import torch

from qpeft import circuits
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qaa.features import Features
from qpeft.methods.qaa.model import QAABranch
from qpeft.methods.qaa.settings import ANSATZE, FEATURE_SOURCES, QAASettings

CPU = torch.device("cpu")


def features(width, seed=0, **settings):
    return Features(QAASettings(**settings), width, "site", SeededInit(seed), CPU)


def signs(n):
    """s_rj: +1 where bit r of j is 0, the first wire the most significant bit."""
    return torch.tensor([[1.0 - 2 * (j >> (n - 1 - r) & 1) for r in range(n)] for j in range(2**n)])


@pytest.mark.parametrize("ansatz", ANSATZE)
def test_circuit_features_are_scaled_expectations(ansatz):
    x = torch.randn(4, 6)
    made = features(6, ansatz=ansatz, n_layers=2)
    p = circuits.amplitude_probabilities(x, made.angles(), ansatz)
    torch.testing.assert_close(made(x), math.sqrt(10 / 2) * p @ signs(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("source", "sign"), [("qnn", 1), ("quadratic", 1), ("givens", 1), ("linear", -1)])
def test_sources_are_even_but_the_linear_one_is_odd(source, sign):
    made, x = features(13, feature_source=source), torch.randn(50, 13)
    assert torch.equal(made(x), sign * made(-x))


@pytest.mark.parametrize("source", [s for s in FEATURE_SOURCES if s != "none"])
def test_only_carry_norm_depends_on_the_input_norm(source):
    x = torch.randn(5, 12, dtype=torch.float64)
    for carry_norm in (False, True):
        settings = QAASettings(feature_source=source, carry_norm=carry_norm)
        made = Features(settings, 12, "site", SeededInit(0), CPU).double()
        branch = QAABranch(settings, made, 12, [[0, 3]], "").double()
        with torch.no_grad():
            branch.V.normal_()
        found = branch(7 * x)
        torch.testing.assert_close(found, (7 if carry_norm else 1) * branch(x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("source", "low", "high"), [("quadratic", 0.97, 1.03), ("linear", 0.7, 1.3)])
def test_controls_have_the_variance_of_a_real_circuit(source, low, high):
    x = torch.randn(4000, 64)
    drawn = torch.cat([features(64, seed, feature_source=source)(x).var(0) for seed in range(20)])
    assert low < drawn.mean() < high


def test_givens_rotations_are_orthogonal_and_as_many_as_angles():
    made = features(64, feature_source="givens", n_layers=2)
    assert made.angles().shape == (2, 3, 6)
    assert made.pairs.shape == (6, 2, 6)
    for pairs in made.pairs:
        assert len(pairs.flatten().unique()) == 12
    one, x = features(4, feature_source="givens", ansatz="qaa"), torch.randn(3, 4)
    (i, j), angle = one.pairs[0], one.angles()[0, 0]
    a = torch.nn.functional.normalize(x, dim=-1)
    turned = a.clone()
    turned[:, i] = angle.cos() * a[:, i] - angle.sin() * a[:, j]
    turned[:, j] = angle.sin() * a[:, i] + angle.cos() * a[:, j]
    torch.testing.assert_close(one(x), math.sqrt(6 / 2) * turned.square() @ signs(2))


def test_quadratic_control_is_one_random_orthogonal_matrix():
    made = features(6, feature_source="quadratic")
    torch.testing.assert_close(made.matrix.T @ made.matrix, torch.eye(6))
    x = torch.randn(3, 6)
    a = torch.nn.functional.normalize(x, dim=-1)
    forms = [made.matrix.T @ torch.diag(signs(3)[:, r]) @ made.matrix for r in range(3)]
    expected = torch.stack([((a @ form) * a).sum(-1) for form in forms], -1) * math.sqrt(5)
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("source", [s for s in FEATURE_SOURCES if s != "none"])
@pytest.mark.parametrize("norm", [0.0, 1e-12])
def test_vanishing_inputs(source, norm):
    x = torch.full((2, 6), norm / math.sqrt(6)).requires_grad_()
    made = features(6, feature_source=source)
    f = made(x)
    assert f.abs().max() <= (0 if norm == 0 else 1e-3)
    f.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_branch_stays_in_float32():
    branch = QAABranch(QAASettings(), features(6), 6, [[0, 4]], "").to(torch.bfloat16)
    assert {p.dtype for p in branch.parameters()} == {torch.float32}
    assert branch.features.angles.start.dtype == torch.float32
    with torch.no_grad():
        branch.V.normal_()
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = branch(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, branch(x.float()))


def test_other_outputs_are_unchanged():
    branch = QAABranch(QAASettings(), features(6), 6, [[1, 3], [5, 6]], "")
    with torch.no_grad():
        branch.V.normal_()
        branch.c.normal_()
    x, y = torch.randn(2, 5, 6), torch.randn(2, 5, 8)
    out, added = branch.add(y, x), branch(x)
    kept = [0, 3, 4, 6, 7]
    assert torch.equal(out[..., kept], y[..., kept])
    torch.testing.assert_close(out[..., [1, 2, 5]], y[..., [1, 2, 5]] + added)


def test_too_wide_inputs_raise():
    with pytest.raises(ConfigError, match="65537"):
        features(65537)
