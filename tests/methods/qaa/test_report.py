"""The report on QAA's features: right means and variances, padding left out, a warning where features hardly vary."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import qpeft
from qpeft.errors import ConfigError, DataError


class Reader(nn.Module):
    """Two linear maps over token vectors of a batch."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x, attention_mask=None):
        return self.q_proj(x) + self.v_proj(x)


def adapted(**settings):
    return get_peft_model(Reader(), qpeft.QAAConfig(**settings))


def test_mean_and_variance_over_all_batches():
    model = adapted(target_modules=["q_proj", "v_proj"]).train()
    batches = [{"x": torch.randn(2, 5, 6)}, {"x": 3 * torch.randn(4, 2, 6) + 1}]
    rows = qpeft.feature_report(model, batches)
    assert [row.name for row in rows] == ["q_proj", "v_proj"]
    x = torch.cat([batch["x"].flatten(0, 1) for batch in batches])
    for row in rows:
        branch = getattr(model.base_model.model, row.name).qaa_branch["default"]
        f = branch.read(x).detach().double()
        assert row.n_tokens == 18
        assert row.mean == pytest.approx(f.mean(0).tolist(), abs=1e-6)
        assert row.variance == pytest.approx(f.var(0, correction=0).tolist(), abs=1e-6)
        assert (row.low_share, row.warnings) == (0.0, [])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_padding_is_left_out():
    model = adapted(target_modules=["q_proj"])
    x = torch.randn(2, 3, 6)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    (row,) = qpeft.feature_report(model, [{"x": x, "attention_mask": mask}])
    (expected,) = qpeft.feature_report(model, [{"x": x[mask.bool()][None]}])
    assert row == expected
    assert row.n_tokens == 3


def test_features_that_hardly_vary_are_warned_of():
    model = adapted(target_modules=["q_proj"])
    x = torch.randn(1, 50, 6) * 1e-3
    x[..., 2] = 1.0  # one large coordinate, as language models have them
    (row,) = qpeft.feature_report(model, [{"x": x}])
    assert row.low_share == 1.0
    assert max(row.variance) < 1e-3
    (warning,) = row.warnings
    assert warning.startswith("q_proj: 100% of the features have a variance below 0.001")


def test_on_a_language_model(gpt2, ids):
    model = get_peft_model(gpt2, qpeft.QAAConfig(task_type="CAUSAL_LM")).eval()
    rows = qpeft.feature_report(model, [{"input_ids": ids}, {"input_ids": ids[:1]}])
    assert [row.name for row in rows] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert {row.n_tokens for row in rows} == {36}


def test_feature_report_without_features_raises(gpt2):
    with pytest.raises(DataError, match="no tokens to report on"):
        qpeft.feature_report(adapted(target_modules=["q_proj"]), [])
    for model in (
        adapted(target_modules=["q_proj"], feature_source="none"),
        get_peft_model(gpt2, LoraConfig(target_modules=["c_attn"])),
    ):
        with pytest.raises(ConfigError, match="no QAA adapter 'default' with features to report on"):
            qpeft.feature_report(model, [])
    with pytest.raises(ConfigError, match="no QAA adapter 'other'"):
        qpeft.feature_report(adapted(target_modules=["q_proj"]), [], adapter_name="other")
