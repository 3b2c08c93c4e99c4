"""QPA's generator: features against the values of the specification, edge sizes, and learning."""

import math

import pytest
import torch
from torch import nn

from qpeft.circuits import probabilities
from qpeft.core.folded import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qpa.generator import QPAGenerator, scaled, squash
from qpeft.methods.qpa.settings import QPAGeneratorConfig


def make(m=60, initial=None, **settings) -> QPAGenerator:
    config = QPAGeneratorConfig(**{"chunk_size": 8, "hidden": (5, 4), "n_layers": 3, **settings})
    return QPAGenerator(config, torch.zeros(m) if initial is None else initial, SeededInit(config.seed))


def example_angles(n_layers, n_qubits):
    return 0.1 * (1 + torch.arange(n_layers * n_qubits, dtype=torch.float64).reshape(n_layers, n_qubits))


def test_features_of_the_specification():
    p = probabilities(example_angles(2, 3))
    expected = [3.4002978008, 0.1469566859, -0.5053432779, -0.4716180386]
    expected += [-0.7001189929, -0.6638533044, -0.6805649755, -0.5257558974]
    torch.testing.assert_close(scaled(p), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    expected = [0.2797479749, 0.1213148058, 0.0031033423, 0.0145861880]
    expected += [-0.1908633695, -0.0978851732, -0.1253366246, -0.0046671437]
    torch.testing.assert_close(squash(p), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("feature", [scaled, squash])
def test_features_and_gradients_are_finite_at_zero_angles(feature):
    angles = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value = feature(probabilities(angles))
    value.pow(2).sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(angles.grad).all()


@pytest.mark.parametrize(
    ("m", "chunk_size"),
    [(5, 8), (8, 8), (16, 8), (17, 8), (32, 8), (1, 1), (2, 1)],
)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_edge_sizes(m, chunk_size, n_layers):
    w = make(m=m, chunk_size=chunk_size, n_layers=n_layers)()
    assert w.shape == (m,)
    assert w.dtype == torch.float32


@pytest.mark.parametrize(("n_qubits", "chunk_size", "n_chunks"), [(7, 2048, 100), (8, 512, 252)])
def test_rank_of_the_chunk_matrix(n_qubits, chunk_size, n_chunks):
    def rank(activation):
        config = QPAGeneratorConfig.paper(chunk_size=chunk_size, activation=activation, init_mode="raw")
        m = chunk_size * n_chunks
        generator = QPAGenerator(config, torch.zeros(m), SeededInit(0)).double()
        assert generator.count.n_qubits == n_qubits
        with torch.no_grad():
            for p in generator.parameters():
                p.normal_(std=0.1)  # leave the start, where all chunks are alike
            singular = torch.linalg.svdvals(generator.chunks())
        return int((singular > 1e-10 * singular[0]).sum())

    assert rank("identity") == n_qubits + 2
    assert n_qubits + 2 < rank("silu") <= 33


def test_non_finite_angles_are_named():
    generator = make()
    with torch.no_grad():
        generator.feature.angles.tau[0, 1, 2] = math.nan
    with pytest.raises(ConfigError, match="contain NaN or Inf"):
        generator()


def test_folding_equals_a_larger_learning_rate_under_adam():
    """One Adam step on tau at learning rate lr changes the value as a step at scale * lr would."""
    start = torch.randn(20)
    folded, plain = Folded(start, 10.0), nn.Parameter(start.clone())
    for value, parameter, lr in ((folded(), folded.tau, 1e-3), (plain, plain, 1e-2)):
        optimiser = torch.optim.Adam([parameter], lr=lr)
        (value * torch.arange(1.0, 21.0)).sum().backward()
        optimiser.step()
    torch.testing.assert_close(folded(), plain.detach(), atol=1e-6, rtol=0)


@pytest.mark.long
def test_weight_decay_pulls_to_the_initial_value():
    folded = Folded(torch.ones(5), 10.0)
    with torch.no_grad():
        folded.tau.fill_(0.3)
    optimiser = torch.optim.AdamW([folded.tau], lr=0.1, weight_decay=0.5)
    for _ in range(400):
        folded.tau.grad = torch.zeros(5)
        optimiser.step()
    torch.testing.assert_close(folded(), torch.ones(5), atol=1e-4, rtol=0)
