"""Trainable tokens: which tokens are chosen, and that the saved adapter is PEFT's own."""

import json
from collections import Counter

import pytest
import torch
from peft import PeftModel, TrainableTokensConfig, get_peft_model

import qpeft
from qpeft.errors import ConfigError
from qpeft.methods.trainable_tokens.config import TokensConfig, choose_for
from qpeft.training import TrainSettings
from qpeft.training.methods import build_adapter


def settings(**method_settings):
    made = TrainSettings(model="m", data="d", out="o", method="trainable_tokens")
    made.method_settings = method_settings
    return made


def test_the_most_frequent_tokens_are_trained(llama):
    ids = torch.tensor([[7, 7, 7, 3, 3, 9], [9, 3, 3, 5, 1, 1]])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0  # the padding is not counted
    counted = Counter([7, 7, 7, 3, 3, 9, 9, 3, 3, 5])
    batches = [{"input_ids": ids, "attention_mask": mask}]
    model = build_adapter(settings(n_tokens=3), llama, batches=lambda: batches)
    expected = sorted(token for token, _ in counted.most_common(3))
    assert model.peft_config["default"].token_indices == expected == [3, 7, 9]
    with pytest.raises(ConfigError, match="n_tokens=5 exceeds the 4 different tokens in 1 batches"):
        build_adapter(settings(n_tokens=5), llama, batches=lambda: batches)


def test_given_indices_are_kept(llama):
    model = build_adapter(settings(token_indices=[4, 2]), llama, batches=lambda: pytest.fail("no data is needed"))
    assert model.peft_config["default"].token_indices == [4, 2]
    assert choose_for(TokensConfig(token_indices=[4, 2])) is None


def test_only_chosen_rows_change_and_the_saved_adapter_is_stock(gpt2, ids, adapters, tmp_path):
    before = gpt2.transformer.wte.weight.detach().clone()
    batches = [{"input_ids": ids}]
    model = adapters.train(build_adapter(settings(n_tokens=2), gpt2, batches=lambda: batches), ids)
    chosen = model.peft_config["default"].token_indices
    assert model.get_nb_trainable_parameters()[0] == 2 * 16, "the tied head has no parameters of its own"
    qpeft.save(model, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "n_tokens" not in saved
    assert saved["token_indices"] == chosen
    expected = adapters.logits(model, ids)
    changed = (model.merge_and_unload().transformer.wte.weight.detach() != before).any(1).nonzero().flatten()
    assert changed.tolist() == chosen
    fresh = type(gpt2)(gpt2.config).eval()
    fresh.load_state_dict(gpt2.state_dict())
    fresh.transformer.wte.weight.data.copy_(before)
    again = PeftModel.from_pretrained(fresh, tmp_path)
    assert type(again.peft_config["default"]) is TrainableTokensConfig
    torch.testing.assert_close(adapters.logits(again, ids), expected, atol=1e-6, rtol=0)


def test_plan_counts_tokens_times_width(llama):
    plan = qpeft.plan(llama, TokensConfig(n_tokens=5, task_type="CAUSAL_LM"))
    assert plan.trainable == 5 * 16
    assert plan.trainable == get_peft_model(llama, TokensConfig(n_tokens=5)).get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("value", [0, "two"])
def test_invalid_number_is_refused(value):
    with pytest.raises(ConfigError, match="n_tokens must be an integer of at least 1"):
        TokensConfig(n_tokens=value)
