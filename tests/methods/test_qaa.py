"""QAA: equation, targets, folders, dtypes; its features and their classical controls, even in the
input.
"""

import copy
import math

import pytest
import torch
from folders import edit_config
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close
from variants import VARIANTS, move

import qpeft
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError
from qpeft.methods.qaa import FEATURE_SOURCES, QAASettings
from qpeft.methods.qaa.features import Features

adapt = VARIANTS["qaa"].adapt
QCHFT = {"ansatz": "all_pairs", "readout": "last_r", "n_read": 3}
LAST = [{}, {"readout": "last_r", "ansatz": "mps"}]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ansatz": "rxyz", "n_layers": 2},
        {"carry_norm": True},
        QCHFT,
    ],
)
def test_output_equals_the_equation(llama, settings):
    """W x + alpha / n (V f(x) + c), where f are the scaled expectations of the circuit."""
    projection = copy.deepcopy(llama.model.layers[0].self_attn.q_proj)
    model = move(adapt(llama, alpha=8, **settings))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    branch = layer.qpeft_adapter["default"]
    x = torch.randn(3, 5, 16)
    z = qpeft.circuits.amplitude_expectations(
        x, branch.features.angles(), settings.get("ansatz", "square")
    )
    f = z[..., -3:] if "n_read" in settings else (18 / 2) ** 0.5 * z
    if settings.get("carry_norm"):
        f = f * x.norm(dim=-1, keepdim=True) / 4
    offset = 0 if "n_read" in settings else branch.c  # QCHFT has none
    expected = projection(x) + 8 / f.shape[-1] * (f @ branch.V.T + offset)

    assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_gpt2_adapts_queries_and_values(gpt2):
    """GPT-2 has one module for queries, keys and values: the keys stay as they are."""
    layer = copy.deepcopy(gpt2.transformer.h[0].attn.c_attn)
    model = move(adapt(gpt2))
    assert model.peft_config["default"].target_modules == ["c_attn"]

    adapted = model.base_model.model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 3, 16)
    branch = adapted.qpeft_adapter["default"]

    assert branch.V.shape == (32, 4)
    assert not branch(x)[..., 16:32].any()
    assert_close(adapted(x), layer(x) + branch(x))


def test_default_targets_of_llama_have_angles_of_their_own(llama):
    model = adapt(llama)
    assert {name.rpartition(".")[2] for name in model.base_model.targeted_module_names} == {
        "q_proj",
        "v_proj",
    }

    first, second, *_ = (
        module.angles() for module in model.modules() if isinstance(module, Features)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"ansatz": "rxyz"},
        {"alpha": 8},
        {"readout": "last_r", "n_read": 1},
    ],
)
def test_folder_with_other_settings_is_refused(gpt2, tmp_path, change):
    adapt(copy.deepcopy(gpt2)).save_pretrained(tmp_path)
    edit_config(tmp_path, **change)
    with pytest.raises(CheckpointError, match="settings"):
        qpeft.load(gpt2, tmp_path)


def test_module_with_two_names_is_adapted_once():
    base = nn.ModuleDict({"first": (linear := nn.Linear(4, 4)), "second": linear})
    model = get_peft_model(base, qpeft.QAAConfig(target_modules=["first", "second"]))
    assert model.base_model.targeted_module_names == ["first"]


def features(width, seed=0, **settings):
    return Features(QAASettings(**settings), width, "site", SeededInit(seed))


def signs(n):
    """s_rj: +1 where bit r of j is 0, the first wire the most significant bit."""
    return torch.tensor([[1.0 - 2 * (j >> (n - 1 - r) & 1) for r in range(n)] for j in range(2**n)])


@pytest.mark.parametrize("more", LAST)
@pytest.mark.parametrize(
    "source, sign",
    [
        ("qnn", 1),
        ("quadratic", 1),
        ("givens", 1),
        ("linear", -1),
    ],
)
def test_sources_are_even_but_the_linear_one_is_odd_and_do_not_depend_on_the_norm(
    source, sign, more
):
    made = features(13, feature_source=source, n_layers=3, **more).double()
    x = torch.randn(50, 13).double()
    f = made(x)

    assert torch.equal(f, sign * made(-x))
    assert_close(made(7 * x), f, atol=1e-12, rtol=1e-12)
    assert f.shape == (50, 2 if more else 4)
    assert not more or source == "linear" or f.abs().max() <= 1


def test_last_r_reads_the_last_qubits():
    """F1: three layers at angles 0, CNOTs there and back three times, are the identity."""
    made = features(4, ansatz="mps", n_layers=3, readout="last_r", n_read=1)
    made.angles.start.zero_()
    assert_close(made(torch.arange(1.0, 5)), torch.tensor([-1 / 3]))


@pytest.mark.parametrize("more", LAST)
@pytest.mark.parametrize(
    "source, low, high",
    [
        ("quadratic", 0.97, 1.03),
        ("linear", 0.7, 1.3),
    ],
)
def test_controls_have_the_variance_of_a_real_circuit(source, low, high, more):
    x = torch.randn(4000, 64)
    drawn = torch.cat(
        [features(64, seed, feature_source=source, **more)(x).var(0) for seed in range(20)]
    )
    assert low < drawn.mean() * (33 if more else 1) < high


def test_givens_rotations_are_orthogonal_and_as_many_as_angles():
    """Each layer turns disjoint pairs of inputs, by an angle each."""
    made = features(64, feature_source="givens", n_layers=2)
    assert made.angles().shape == (2, 3, 6)
    assert made.pairs.shape == (6, 2, 6)

    for pairs in made.pairs:
        assert len(pairs.flatten().unique()) == 12
    assert features(13, feature_source="givens", ansatz="mps").pairs.shape == (5, 2, 4)  # 18 angles

    small = features(4, feature_source="givens", ansatz="qaa")
    x = torch.randn(3, 4)
    i, j = small.pairs[0].long()
    angle = small.angles()[0, 0]
    a = torch.nn.functional.normalize(x, dim=-1)
    turned = a.clone()
    turned[:, i] = angle.cos() * a[:, i] - angle.sin() * a[:, j]
    turned[:, j] = angle.sin() * a[:, i] + angle.cos() * a[:, j]

    assert_close(small(x), math.sqrt(6 / 2) * turned.square() @ signs(2))


def test_quadratic_control_is_one_random_orthogonal_matrix():
    made = features(6, feature_source="quadratic")
    x = torch.randn(3, 6)
    assert not made.state_dict()  # it is drawn again
    assert_close(made.matrix.T @ made.matrix, torch.eye(6))
    phi = torch.nn.functional.normalize(x, dim=-1) @ made.matrix.T
    assert_close(made(x), math.sqrt(10 / 2) * phi.square() @ signs(3))


@pytest.mark.parametrize(
    "more",
    [
        *LAST,
        {"ansatz": "rxyz", "n_layers": 2},
    ],
)
@pytest.mark.parametrize("source", [s for s in FEATURE_SOURCES if s != "none"])
@pytest.mark.parametrize("norm", [0.0, 1e-12])
def test_vanishing_inputs(source, norm, more):
    """A token of zeros has features near zero and a finite gradient."""
    x = torch.full((2, 6), norm / math.sqrt(6)).requires_grad_()
    made = features(6, feature_source=source, **more)
    f = made(x)

    assert f.abs().max() <= (0 if norm == 0 else 1e-3)

    f.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert norm or source == "linear" or not x.grad.any()
