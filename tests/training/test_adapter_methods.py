import json
from dataclasses import fields

import pytest
import torch
from transformers import AutoModelForCausalLM

from qpeft.errors import ConfigError
from qpeft.methods import Trains, get, keys
from qpeft.methods.method import imported
from qpeft.training import TrainSettings
from qpeft.training.methods import build_adapter
from qpeft.training.outputs import count_trainable

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


def build(tiny_model, method, **method_settings):
    settings = TrainSettings(model=str(tiny_model), data="d", out="o", method=method, seed=7)
    settings.method_settings = method_settings
    torch.manual_seed(0)
    return build_adapter(settings, AutoModelForCausalLM.from_pretrained(tiny_model))


@pytest.mark.parametrize("key", keys())
def test_methods_declare_config_defaults_and_presets(key):
    method = get(key)
    if method.trains is Trains.MODEL:
        assert method.config is None
        return
    assert set(method.defaults) <= {f.name for f in fields(method.config_class)}
    assert all(callable(getattr(method.config_class, preset)) for preset in method.presets)
    for name in ("tuner", "generator", "options", "callbacks", "advice", "check", "count"):
        assert imported(getattr(method, name)) is None or callable(imported(getattr(method, name)))


# a layer of width 16: c_attn 16x48, attn.c_proj 16x16, c_fc 16x64, mlp.c_proj 64x16
RANK_8 = 8 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))


@pytest.mark.parametrize(
    ("method", "trainable"),
    [
        ("lora", 2 * RANK_8),
        ("dora", 2 * (RANK_8 + 48 + 16 + 64 + 16)),
        ("ia3", 2 * (48 + 64)),
        ("vera", 2 * (4 * 256 + 48 + 16 + 64 + 16)),
        ("prefix", 2 * 10 * 16 * 2),
    ],
)
def test_stock_methods_train_the_expected_parameters(tiny_model, method, trainable):
    assert count_trainable(build(tiny_model, method)) == trainable


def test_full_trains_the_base_itself(tiny_model):
    model = build(tiny_model, "full")
    assert count_trainable(model) == sum(p.numel() for p in model.parameters())


def test_qpa_trains_half_the_parameters_of_lora(tiny_model):
    model = build(tiny_model, "qpa", r=4)
    assert 0.8 * RANK_8 / 2 < count_trainable(model) <= RANK_8 / 2
    assert model.peft_config["default"].seed == 7
    assert build(tiny_model, "qpa", r=4, seed=3).peft_config["default"].seed == 3


@pytest.mark.parametrize(
    ("method", "method_settings", "message"),
    [
        ("lora", {"r": "eight"}, "r must be a number, got 'eight'"),
        ("lora", {"task_type": "SEQ_CLS"}, "unknown field of method lora: 'task_type'"),
        ("lora", {"r": 2**31}, "r=2147483648 is larger than the model; use at most 1024"),
        ("lora", {"trainable_token_indices": [2**31]}, "index 2147483648 is out of bounds"),
        ("lora", {"r": 0}, "`r` should be a positive integer"),
        ("lora", {"target_modules": ["c_atn"]}, "'c_atn' matches no module; nearest names: c_attn"),
        ("qpa", {"buget": 0.5}, "did you mean 'budget'?"),
        ("full", {"r": 4}, "method full has no fields, got r"),
    ],
)
def test_invalid_method_settings_are_refused(tiny_model, method, method_settings, message):
    with pytest.raises(ConfigError) as refused:
        build(tiny_model, method, **method_settings)
    assert message in str(refused.value)


@pytest.mark.parametrize("method", ["lora", "qpa", "sora"])
def test_names_are_saved_in_one_order_in_every_process(tiny_model, tmp_path, method):
    model = build(tiny_model, method, target_modules="all-linear")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert saved == sorted(saved)
    assert len(saved) > 3
