"""Counts, budgets and settings against the published tables and brute force."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qpeft.errors import ConfigError
from qpeft.methods.qpa.settings import PAPER_HIDDEN, QPAGeneratorConfig


@pytest.mark.parametrize(
    ("m", "chunk_size", "n_chunks", "n_qubits", "total"),
    [
        (204_100, 2048, 100, 7, 106_264),  # GPT-2 lm_head, the published count
        (204_100, 1024, 200, 8, 72_512),
        (204_100, 256, 798, 10, 47_248),
        (1_032_192, 4096, 252, 8, 173_888),  # Gemma lm_head
        (393_216, 1024, 384, 9, 72_552),
        (1_500 * 1024, 1024, 1500, 11, 72_632),
        (10, 100, 1, 1, 41_740),
        (2048, 1024, 2, 1, 72_232),
        (2049, 1024, 3, 2, 72_272),
        (4096, 1024, 4, 2, 72_272),
        (4097, 1024, 5, 3, 72_312),
    ],
)
def test_published_counts(m, chunk_size, n_chunks, n_qubits, total):
    count = QPAGeneratorConfig.paper(chunk_size=chunk_size).count(m)
    assert (count.n_chunks, count.n_qubits, count.total) == (n_chunks, n_qubits, total)


@pytest.mark.parametrize(("n_layers", "total"), [(1, 106_215), (8, 106_264), (64, 106_656)])
def test_depth_adds_one_angle_per_qubit_and_layer(n_layers, total):
    assert QPAGeneratorConfig.paper(chunk_size=2048, n_layers=n_layers).count(204_100).total == total


@pytest.mark.parametrize(
    ("source", "total"),
    [("qnn", 106_264), ("qnn_frozen", 106_208), ("free", 106_308), ("random", 106_208), ("none", 106_176)],
)
def test_counts_of_controls(source, total):
    assert QPAGeneratorConfig.paper(chunk_size=2048, feature_source=source).count(204_100).total == total


@pytest.mark.parametrize(
    ("m", "spend", "chunk_size", "n_qubits", "total"),
    [
        (204_100, 106_264, 2048, 7, 106_264),
        (204_100, 102_050, 1920, 7, 102_040),
        (204_100, 51_025, 370, 10, 51_010),
        (1_032_192, 173_888, 4096, 8, 173_888),
        (1_032_192, 103_219, 1952, 10, 103_216),
        (147_456, 73_728, 1060, 8, 73_700),
        (884_736, 200_000, 4887, 8, 199_991),
        (204_100, 39_146, 2, 17, 39_146),
    ],
)
def test_published_budgets(m, spend, chunk_size, n_qubits, total):
    count = QPAGeneratorConfig(budget=spend, hidden=PAPER_HIDDEN).count(m)
    assert (count.chunk_size, count.n_qubits, count.total) == (chunk_size, n_qubits, total)


@pytest.mark.parametrize(("m", "smallest"), [(204_100, 39_146), (1_032_192, 39_226), (147_456, 39_139)])
def test_budget_below_the_minimum_raises(m, smallest):
    config = QPAGeneratorConfig(budget=smallest - 1, hidden=PAPER_HIDDEN)
    with pytest.raises(ConfigError, match=rf"budget {smallest - 1} is too small: .* for {m} .* has {smallest} "):
        config.count(m)


@pytest.mark.parametrize(
    ("m", "chunk_size", "n_qubits", "total", "last"), [(204_100, 1920, 7, 102_040, 32), (32_768, 1534, 5, 16_382, 8)]
)
def test_hidden_widths_follow_the_budget(m, chunk_size, n_qubits, total, last):
    count = QPAGeneratorConfig.paper(budget=0.5).count(m)
    assert (count.chunk_size, count.n_qubits, count.total, count.widths[-2]) == (chunk_size, n_qubits, total, last)
    assert QPAGeneratorConfig.paper().count(m) == count  # half the adapter's parameters is the default


def test_chunk_size_uses_the_published_widths():
    assert QPAGeneratorConfig.paper(chunk_size=8).count(100).widths[1:-1] == PAPER_HIDDEN


@given(
    m=st.integers(1, 3000),
    spend=st.integers(100, 4000),
    n_layers=st.integers(1, 9),
    features=st.sampled_from([1, 2, 8]),
    hidden=st.sampled_from([(), (3, 5, 2)]),
    n_generators=st.sampled_from([1, 2, 3]),
)
def test_largest_chunk_equals_brute_force(m, spend, n_layers, features, hidden, n_generators):
    share = -(-m // n_generators)
    assume((n_generators - 1) * share < m)
    same = {"n_layers": n_layers, "hidden": hidden, "features": features, "n_generators": n_generators}
    all_sizes = QPAGeneratorConfig(**same, chunk_size=1)
    affordable = []
    for all_sizes.chunk_size in range(1, share + 1):
        count = all_sizes.count(m)
        if count.total <= spend:
            affordable.append(count)
    for source in ("qnn", "none"):  # the controls have the chunk size of the trained circuit
        config = QPAGeneratorConfig(**same, budget=spend, feature_source=source)
        if affordable:
            assert config.count(m).chunk_size == affordable[-1].chunk_size
        else:
            with pytest.raises(ConfigError, match="too small"):
                config.count(m)


@pytest.mark.parametrize(
    ("settings", "m", "enough"),
    [
        ({"features": 1, "chunk_size": 2}, 17 << 17, 3),
        ({"features": 4, "chunk_size": 2, "n_generators": 2}, 34 << 15, 3),
    ],
)
def test_too_many_qubits_raise(settings, m, enough):
    with pytest.raises(ConfigError, match=rf"more than 20; use chunk_size >= {enough}"):
        QPAGeneratorConfig(**settings).count(m)
    count = QPAGeneratorConfig(**{**settings, "chunk_size": enough}).count(m)
    assert count.n_qubits == 20


@pytest.mark.parametrize("ansatz", ["ry_ladder", "two_design", "efficient_su2"])
def test_count_of_register_features(ansatz):
    """L (N + k) angles for the ladder, and n K weights."""
    count = QPAGeneratorConfig(features=16, budget=23_120, ansatz=ansatz).count(46_240)
    n_angles = {"ry_ladder": 80, "two_design": 154, "efficient_su2": 180}[ansatz]
    assert count.n_qubits == 10
    assert count.total == n_angles + 16 * count.chunk_size
    assert count.n_chunks == -(-46_240 // count.chunk_size)


def test_count_of_zero_parameters_raises():
    with pytest.raises(ConfigError, match="no trainable adapter parameters found; attach a PEFT adapter"):
        QPAGeneratorConfig().count(0)
