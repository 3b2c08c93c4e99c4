"""QAA and CUA with measured circuits: shots and noise of every circuit on an input, their forecast and budget."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from variants import move

import qpeft
from qpeft.backends import BackendSettings
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.cua.model import CUARotation
from qpeft_lab.training.measured import measured_scores

QAA, CUA, LORA = qpeft.QAAConfig, partial(qpeft.CUAConfig, readout="magnitude"), LoraConfig(target_modules="all-linear")
MODELS = {  # with their circuits on a batch of 27 tokens
    "qaa": (QAA(carry_norm=True), 4 * 27),
    "qchft": (QAA(ansatz="all_pairs", readout="last_r", n_layers=2, target_modules=["down_proj"]), 2 * 27),
    "cua": (CUA(target_modules=["v_proj"]), 2 * 27 * 4),
    "cua behind maps": (CUA(target_modules=["down_proj", "gate_proj"], side="output", block_size=16), 2 * 2 * 27),
}


def scored(model, ids, seen=None, **settings):
    """Costs and logits of measured circuits; `seen` gets the costs, and a call of the model."""
    seen = [] if seen is None else seen
    score = lambda: seen.append("score") or model(input_ids=ids).logits.detach()  # noqa: E731
    with torch.no_grad():
        return measured_scores(model, score, BackendSettings(**settings), forecast=seen.append)


@pytest.fixture(params=MODELS)
def adapted(request, llama):
    config, circuits = MODELS[request.param]
    return move(get_peft_model(llama, config), spread=0.3), circuits


def test_many_shots_give_the_exact_outputs_and_few_do_not(adapted, ids):
    model, circuits = adapted
    exact = model(input_ids=ids).logits.detach()
    for settings, tolerance in (({"noise": 0.0}, 1e-5), ({"shots": 10**9}, 2e-3)):
        costs, found = scored(model, ids, **settings)
        assert costs["circuits"] == circuits
        assert costs["shots"] == circuits * settings.get("shots", 0)
        for logits in found.values():
            torch.testing.assert_close(logits, exact, atol=tolerance, rtol=0)
    few, again = (scored(model, ids, shots=20)[1]["measured"] for _ in range(2))
    assert (few - exact).abs().max() > 5e-3
    assert torch.equal(few, again)  # counts depend on the seed
    assert torch.equal(model(input_ids=ids).logits, exact)  # nothing is left in the model


@torch.no_grad()
def test_cua_has_the_check_values_of_noise_and_counts():
    """C4: lam = 0.119; and without noise the counts of NumPy's generator."""
    x, k = torch.arange(1, 5, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    rotation = CUARotation(CUA(), "f", (4, 4), SeededInit(0)).double()
    rotation.angles.tau.data = k[None].double()
    model, score = nn.ModuleDict({"f": rotation}), lambda: x + rotation(x)
    _, found = measured_scores(model, score, BackendSettings(noise=0.119))
    expected = torch.tensor([1.200433, 1.333292, 1.026517, 5.072234], dtype=torch.float64)
    torch.testing.assert_close(found["measured"], expected, atol=1e-6, rtol=0)
    _, found = measured_scores(model, score, BackendSettings(shots=8192))
    counts = 8192 * found["measured"].square() / x.square().sum()
    assert counts.round().tolist() == [151, 276, 60, 7705]


@torch.no_grad()
def test_noise_shrinks_the_features_of_qaa_and_zero_inputs_have_none(llama):
    layer = get_peft_model(llama, QAA()).model.model.layers[0].self_attn.q_proj
    features = layer.qpeft_adapter["default"].features
    x = torch.randn(5, 16)
    x[0] = 0
    score = lambda: features(x, layer.qpeft_adapter["default"].measure)  # noqa: E731
    _, found = measured_scores(layer, score, BackendSettings(noise=0.3))
    torch.testing.assert_close(found["measured"], 0.7 * features(x), atol=1e-5, rtol=0)


def test_budget_is_checked_after_the_forecast_and_before_any_shot(llama, ids):
    model, seen = get_peft_model(llama, QAA()), []
    scored(model, ids, shots=100, shot_budget=100 * 108)
    with pytest.raises(ConfigError, match="10,800 more shots"):
        scored(model, ids, seen, shots=100, shot_budget=100 * 108 - 1)
    assert seen == ["score", {"noise": 0.0, "shots_per_circuit": 100, "circuits": 108, "shots": 10_800}]


@pytest.mark.parametrize(
    "config",
    [QAA(feature_source="quadratic"), qpeft.CUAConfig(), CUA(side="output", block_size=6), qpeft.QuICConfig(), LORA],
)
def test_adapters_without_measured_circuits_are_refused(llama, ids, config):
    with pytest.raises(ConfigError, match="no measurement gives the signs"):
        scored(model := get_peft_model(llama, config), ids, seen := [], shots=100)
    assert not seen
    with pytest.raises(ConfigError, match="measured by qpeft evaluate"):
        qpeft.set_backend(model, shots=100)
