"""QPA's generator against independent computations: any ansatz, several generators, sizes, folded
values, order.
"""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from circuits import by_pennylane
from qpeft.circuits import Ansatz, probabilities
from qpeft.core.binding import _Boundary
from qpeft.core.folded import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qpa.generator import QPAGenerator, scaled, squash
from qpeft.methods.qpa.settings import QPAGeneratorConfig


def make(m, **settings):
    config = QPAGeneratorConfig(**{"n_layers": 3, "init_mode": "raw", **settings})
    return QPAGenerator(config, torch.zeros(m), SeededInit(0)).double()


@pytest.mark.parametrize("feature_map", ["scaled", "whitened"])
@pytest.mark.parametrize(
    "ansatz, features, chunk_size, m, k",
    [
        *((ansatz, 16, 40, 1000, 1) for ansatz in ("ry_ladder", "two_design", "rxyz", "square")),
        ("rxyz", 4, 13, 777, 2),
        ("ry_ladder", 1, 5, 200, 3),
        ("two_design", 8, 300, 300, 1),  # one chunk
        ("ry_ladder", 16, 2, 2501, 1),  # 15 qubits
    ],
)
def test_values_and_gradients_of_register_features_equal_pennylane(
    ansatz, feature_map, features, chunk_size, m, k
):
    """k generators with angles, a whitening S and a map W of their own, of ceil(m / k) values each,
    cut to m.

    flat = concat_c W S f_c with S of the initial angles, and with x = 2^(N+k) p[c, :] and a =
    sqrt(2 / pi) f_c = (x - 1) / sqrt 2 or (sqrt x - a) / sqrt(1 - a^2).
    """
    settings = {
        "features": features,
        "chunk_size": chunk_size,
        "feature_map": feature_map,
        "n_generators": k,
    }
    generator = make(m, ansatz=ansatz, **settings)
    with torch.no_grad():
        generator.feature.angles.tau.normal_(generator=torch.Generator().manual_seed(1), std=0.2)
    share = math.ceil(m / k)
    n_chunks = math.ceil(share / chunk_size)
    circuit = Ansatz(ansatz, max(1, math.ceil(math.log2(n_chunks))) + int(math.log2(features)), 3)
    run = by_pennylane(circuit)

    def of_chunks(angles):
        x = 2**circuit.n_qubits * run(angles).view(-1, features)[:n_chunks]
        if feature_map == "scaled":
            return (x - 1) / math.sqrt(2)
        return (x.clamp(min=1e-6).sqrt() - math.sqrt(2 / math.pi)) / math.sqrt(1 - 2 / math.pi)

    mixed = torch.eye(features, dtype=torch.float64).expand(k, -1, -1)
    if feature_map == "whitened":
        by_hand = [
            by_svd(of_chunks(angles).numpy()) for angles in generator.feature.angles(initial=True)
        ]
        mixed = generator.whitening
        assert_close(mixed, torch.stack(by_hand), atol=1e-5, rtol=1e-5)  # float32
    weights = torch.linspace(-1, 1, m, dtype=torch.float64)
    flat = generator()
    of_generator = torch.autograd.grad(flat @ weights, list(generator.parameters()))
    angles, weight = (
        value().detach().requires_grad_()
        for value in (generator.feature.angles, generator.mlp[0].weight)
    )
    parts = [(of_chunks(angles[g]) @ mixed[g] @ weight[g].T).flatten()[:share] for g in range(k)]
    expected = torch.cat(parts)[:m]

    assert_close(flat, expected, atol=1e-10, rtol=0)

    of_expected = torch.autograd.grad(expected @ weights, (angles, weight))
    scales = (1, 10)  # angle_scale, mlp_scale
    for gradient, other, scale in zip(of_generator, of_expected, scales, strict=True):
        assert_close(gradient, scale * other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, 0.01),
        ({"feature_map": "scaled", "feature_source": "random"}, 0.01),
        ({"feature_source": "none"}, 0.01 * 7**0.5),  # of the 7 bits of 79 chunks
    ],
)
def test_small_initial_values_have_the_documented_root_mean_square(more, expected):
    generator = make(40_000, init_mode="small", features=16, chunk_size=512, **more)
    assert generator().square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)


def by_svd(features):
    """The symmetric matrix that makes the rows of F uncorrelated and of norm 1 on average."""
    _, values, vectors = np.linalg.svd(features, full_matrices=False)
    kept = values > 1e-3 * values[0]
    roots = np.where(kept, np.sqrt(len(features) / kept.sum()) / np.maximum(values, 1e-30), 0)
    return torch.from_numpy(vectors.T @ np.diag(roots) @ vectors)


@pytest.mark.parametrize("feature", [scaled, squash])
def test_features_and_gradients_are_finite_at_zero_angles(feature):
    """All probabilities but one are zero there, where a square root has no slope."""
    angles = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value = feature(probabilities(angles))
    value.pow(2).sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(angles.grad).all()


@pytest.mark.parametrize(
    "m, chunk_size",
    [
        (5, 8),
        (8, 8),
        (16, 8),
        (17, 8),
        (32, 8),
        (1, 1),
        (2, 1),
    ],
)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_edge_sizes(m, chunk_size, n_layers):
    """One chunk, full chunks, one value more, and a single value: always m values."""
    w = make(m, chunk_size=chunk_size, hidden=(5, 4), n_layers=n_layers)().float()
    assert w.shape == (m,)
    assert w.dtype == torch.float32


def test_non_finite_angles_are_named():
    generator = make(60, chunk_size=8, hidden=(5, 4))
    with torch.no_grad():
        generator.feature.angles.tau[0, 1, 2] = math.nan
    with pytest.raises(ConfigError, match="contain NaN or Inf"):
        generator()


def test_folding_equals_a_larger_learning_rate_under_adam():
    """One Adam step on tau at learning rate lr changes the value as a step at scale * lr would."""
    start = torch.randn(20)
    folded = Folded(start, 10.0)
    plain = nn.Parameter(start.clone())
    for value, parameter, lr in ((folded(), folded.tau, 1e-3), (plain, plain, 1e-2)):
        optimiser = torch.optim.Adam([parameter], lr=lr)
        (value * torch.arange(1.0, 21.0)).sum().backward()
        optimiser.step()

    assert_close(folded(), plain.detach(), atol=1e-6, rtol=0)


def test_vector_order(llama, adapters):
    """`peft` is the order of PEFT's parameters; `official` has B before A."""

    def labels(order):
        model = adapters.qpa(
            copy.deepcopy(llama), vector_order=order, target_modules=["q_proj", "v_proj"]
        )
        return [slot.label for slot in model.base_model.generators.bindings["default"].slots]

    stock = get_peft_model(
        copy.deepcopy(llama), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    names = [
        n.replace(".default", "")
        for n, p in stock.base_model.model.named_parameters()
        if p.requires_grad
    ]

    assert labels("peft") == names
    assert labels("official")[:2] == names[1::-1]
    assert "lora_B" in labels("official")[0]
    assert sorted(labels("official")) == sorted(names)


def test_generator_adds_one_autograd_node(llama, ids, adapters):
    """As many tensors as it fills, the graph of a loss has one node of the boundary."""
    loss = adapters.qpa(llama)(input_ids=ids, labels=ids).loss
    seen = set()
    queue = [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue.extend(parent for parent, _ in node.next_functions)

    assert sum(type(node).__name__ == f"{_Boundary.__name__}Backward" for node in seen) == 1
