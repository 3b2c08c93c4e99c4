"""What methods train in a run: their counts, seeds and calibration, and adapters that stock PEFT
loads.
"""

import copy
import re
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from qpeft.errors import ConfigError
from qpeft.files import read_json
from qpeft.methods import Trains, get, keys
from qpeft.methods.method import imported
from qpeft_lab import RunSettings, train
from qpeft_lab.training.initial import TokensConfig
from qpeft_lab.training.methods import build_adapter, build_configs

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


def settings_of(method, host="lora", seed=7, **method_settings):
    return RunSettings(
        model="m",
        data="d",
        out="o",
        method=method,
        host=host,
        seed=seed,
        method_settings=method_settings,
    )


def build(base, method, **changes):
    torch.manual_seed(0)
    return build_adapter(settings_of(method, **changes), AutoModelForCausalLM.from_pretrained(base))


@pytest.mark.parametrize("key", keys())
def test_methods_declare_config_defaults_and_every_seed(key):
    method = get(key)
    if method.trains is Trains.MODEL:
        assert method.config is None
        return
    names = {f.name for f in fields(method.config_class)}

    assert set(method.defaults) <= names

    for name in ("tuner", "generator", "options", "callback"):
        assert imported(getattr(method, name)) is None or callable(imported(getattr(method, name)))
    # a method of PEFT whose config has another seed needs `seed_field` in its record
    assert {name for name in names if re.search("seed|prng", name)} <= {method.seed_field}
    assert method.seed_field == SEED_FIELDS.get(key, "seed")


@pytest.mark.parametrize("method", ["lora", "qpa", "sora"])
def test_names_are_saved_in_one_order_in_every_process(tiny_model, tmp_path, method):
    build(tiny_model, method, target_modules="all-linear").save_pretrained(tmp_path)
    saved = read_json(tmp_path / "adapter_config.json")["target_modules"]
    assert saved == sorted(saved)
    assert len(saved) > 3


# -- random projections of PEFT's methods

SEED_FIELDS = {
    "uni_lora": "proj_seed",
    "tiny_lora": "projection_seed",
    "vera": "projection_prng_key",
    "fourierft": "random_loc_seed",
}
SIZES = {
    "uni_lora": {"r": 2, "theta_d_length": 64},
    "tiny_lora": {"r": 4, "u": 3},
    "vera": {"r": 4},
    "fourierft": {"n_frequency": 50},
}
OVER_VERA = {"host": "vera", "chunk_size": 32, "features": 4, "n_layers": 2}
WHERE = ("unilora_indices_A", "unilora_indices_B", "tinylora_P", "vera_A", "vera_B", "indices")


def projections(model):
    """The frozen random tensors of every module."""
    found = [
        getattr(module, name)
        for module in model.modules()
        for name in WHERE
        if hasattr(module, name)
    ]
    return [tensors["default"] for tensors in found if "default" in tensors]


def test_seed_of_a_run_is_no_field_of_its_method():
    """Runs with other seeds would begin with the same adapter."""
    settings = replace(settings_of("qpa"), method_settings={"seed": 3})
    with pytest.raises(ConfigError, match="set seed of the run, or seeds of the study"):
        build_configs(settings)


def are_equal(model, other):
    return [torch.equal(a, b) for a, b in zip(projections(model), projections(other), strict=True)]


@pytest.mark.parametrize("method", [*SEED_FIELDS, "qpa"])
def test_projections_are_drawn_from_the_seed_of_the_run_or_a_given_one(tiny_model, method):
    more = SIZES.get(method, OVER_VERA)
    field = SEED_FIELDS.get(method, "projection_prng_key")
    first, again, other = (build(tiny_model, method, seed=seed, **more) for seed in (5, 5, 2))

    assert all(are_equal(first, again))
    # PEFT's seed of a module of TinyLoRA is `projection_seed` plus the index of the module
    assert not any(torch.equal(a, b) for a in projections(first) for b in projections(other))

    given, same = (build(tiny_model, method, seed=seed, **more, **{field: 5}) for seed in (1, 2))
    assert all(are_equal(given, same))
    assert all(are_equal(given, first)) == (method != "tiny_lora")
    assert projections(build(tiny_model, method, seed=2**32 - 1, **more))


# -- trainable tokens


def test_the_most_frequent_tokens_are_trained_unless_indices_are_given(llama):
    ids = torch.tensor([[7, 7, 7, 3, 3, 9], [9, 3, 3, 5, 1, 1]])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0  # the padding is not counted
    expected = sorted(token for token, _ in Counter([7, 7, 7, 3, 3, 9, 9, 3, 3, 5]).most_common(3))
    batches = [{"input_ids": ids, "attention_mask": mask}]
    for given, chosen in (({"n_tokens": 3}, expected), ({"token_indices": [4, 2]}, [4, 2])):
        model = build_adapter(
            settings_of("trainable_tokens", **given), copy.deepcopy(llama), batches=lambda: batches
        )
        assert model.peft_config["default"].token_indices == chosen

    with pytest.raises(ConfigError, match="n_tokens=5"):
        build_adapter(settings_of("trainable_tokens", n_tokens=5), llama, batches=lambda: batches)

    for value in (0, "two"):
        with pytest.raises(ConfigError, match="n_tokens"):
            TokensConfig(n_tokens=value)


# -- SoRA


@pytest.fixture
def sora(settings):
    def make(shrink_budget=0.3, **changes):
        sizes = {
            "steps": 8,
            "lr": 0.1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "eval_blocks": 8,
        }
        given = {"r": 4, "shrink_budget": shrink_budget}
        return settings(method="sora", method_settings=given, **{**sizes, "seq_len": 16, **changes})

    return make


def test_gates_of_sora_have_no_weight_decay(sora):
    result = train(sora(weight_decay=0.1, lr=0.02))
    rates = [0.02 * rate for rate in (0, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7)]
    config = read_json(result.adapter / "adapter_config.json")
    assert config["sora_lambda"] == pytest.approx(0.3 / sum(rates))


def test_run_of_sora_without_remaining_ranks_has_no_export(sora):
    with pytest.warns(UserWarning, match="every gate of SoRA is zero"):
        result = train(sora(shrink_budget=10.0))
    assert result.deployed == 0
    assert result.exported_bytes == 0
    assert not result.exported.exists()
    assert result.after.loss == result.before.loss
