"""A run of SoRA: folders, counts, commands."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.training import train

WIDTHS = 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
R = 4


@pytest.fixture
def sora(settings):
    def make(shrink_budget=0.3, **changes):
        method_settings = {"r": R, "shrink_budget": shrink_budget, **changes.pop("method_settings", {})}
        sizes = {
            "steps": 8,
            "lr": 0.1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "seq_len": 16,
            "eval_blocks": 8,
        }
        return settings(method="sora", method_settings=method_settings, **{**sizes, **changes})

    return make


def test_run_folder_has_the_counts_of_the_model(sora, tiny_model):
    result = train(sora())
    assert result.after.loss < result.before.loss
    assert result.trainable == R * WIDTHS + 8 * R
    record = json.loads((result.exported / "qpeft.json").read_text())
    assert 0 < record["n_zero"] < 8 * R
    assert result.deployed == record["n_deployed"] < R * WIDTHS
    ids = torch.arange(20).view(2, 10)
    ours = qpeft.load(AutoModelForCausalLM.from_pretrained(tiny_model), result.adapter).eval()(input_ids=ids).logits
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), result.exported).eval()
    torch.testing.assert_close(stock(input_ids=ids).logits, ours, atol=1e-6, rtol=1e-6)
    card = (result.out / "README.md").read_text(encoding="utf-8")
    assert "the adapter with its gates" in card
    assert "it loads with PEFT alone" in card


def test_gates_have_no_weight_decay_and_their_own_learning_rate(sora):
    result = train(sora(weight_decay=0.1, lr=0.02, method_settings={"gate_lr_mult": 5.0}))
    rates = [0.02 * 5 * rate for rate in (0, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7)]
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["sora_lambda"] == pytest.approx(0.3 / sum(rates))


def test_run_without_remaining_ranks_has_no_export(sora):
    with pytest.warns(UserWarning, match="every gate of SoRA is zero, so there is no adapter to export"):
        result = train(sora(shrink_budget=10.0))
    assert (result.deployed, result.exported_bytes) == (0, 0)
    assert not result.exported.exists()
    assert result.after.loss == result.before.loss
    assert "its gates are all zero" in (result.out / "README.md").read_text(encoding="utf-8")
