"""Export of SoRA: ranks, patterns, counts, equal outputs, errors."""

import copy
import json
import math
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import qpeft
from qpeft.errors import ConfigError


def gated(base, ranks, **settings):
    """An adapter with this number of nonzero gates in each module."""
    torch.manual_seed(1)
    model = get_peft_model(base, qpeft.SoRAConfig(**{"r": 8, "task_type": "CAUSAL_LM", **settings}))
    with torch.no_grad():
        for (_, _, gate), rank in zip(model.base_model.gates(), ranks, strict=True):
            gate[torch.randperm(len(gate))[: len(gate) - rank]] = -0.0
        for name, parameter in model.named_parameters():
            if name.endswith(".b.weight"):
                parameter.normal_(0, 0.3)
    return model.eval()


def stock(base, folder):
    return PeftModel.from_pretrained(base, str(folder)).eval()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("base_name", ["gpt2", "llama"])
def test_stock_peft_gives_equal_outputs(base_name, rslora, request, ids, tmp_path):
    base = request.getfixturevalue(base_name)
    fresh, n_sites = copy.deepcopy(base), {"gpt2": 8, "llama": 14}[base_name]
    ranks = [3, 0, 8, 3, 1, 5, 3, 2, 3, 0, 7, 3, 4, 6][:n_sites]
    model = gated(base, ranks, target_modules="all-linear", use_rslora=rslora, lora_alpha=12)
    report = qpeft.export(model, tmp_path / "out")
    assert report.max_logit_difference <= 1e-6
    # in float64 the two differ by its rounding alone: they are one function
    loaded = stock(copy.deepcopy(fresh).double(), tmp_path / "out").double()
    live = copy.deepcopy(model).double()(input_ids=ids).logits
    assert (loaded(input_ids=ids).logits - live).abs().max() < 1e-6
    assert not torch.allclose(fresh.double()(input_ids=ids).logits, live, atol=1e-2)


def test_ranks_patterns_and_counts(llama, tmp_path):
    ranks = [3, 0, 5, 3]
    model = gated(llama, ranks, target_modules=["q_proj", "v_proj"], lora_alpha=16)
    report = qpeft.export(model, tmp_path / "out")
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    assert report.ranks == dict(zip(names, ranks, strict=True))
    widths = [32, 24, 32, 24]
    assert report.n_deployed == sum(r * w for r, w in zip(ranks, widths, strict=True))
    assert report.n_trained == sum(8 * w + 8 for w in widths)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 5, 10)
    keys = [f"^{re.escape(name)}" for name in [names[0], *names[2:]]]
    assert config["rank_pattern"] == dict(zip(keys, [3, 5, 3], strict=True))
    assert config["alpha_pattern"] == dict(zip(keys, [6, 10, 6], strict=True))
    assert config["target_modules"] == [names[0], *names[2:]]
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(t.numel() for t in state.values()) == report.n_deployed
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert report.n_bytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size


def test_patterns_and_exclusions_are_kept(llama, ids, tmp_path):
    fresh = copy.deepcopy(llama)
    settings = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 2}}
    model = gated(llama, [4, 2, 0, 3], target_modules=r".*\.(q|v|o)_proj", exclude_modules=r".*o_proj", **settings)
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["k_proj"]))  # is not exported
    expected = model(input_ids=ids).logits
    report = qpeft.export(model, tmp_path)
    assert list(report.ranks.values()) == [4, 2, 0, 3]
    torch.testing.assert_close(stock(fresh, tmp_path)(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("ranks", "value"), [([0, 0, 0, 0], 0.0), ([3, 4, 5, 6], math.nan)])
def test_adapter_without_an_effect_and_non_finite_gates_are_not_exported(llama, tmp_path, ranks, value):
    model = gated(llama, ranks)
    with torch.no_grad():
        next(gate for _, _, gate in model.base_model.gates())[0] = value
    with pytest.raises(ConfigError):
        qpeft.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
