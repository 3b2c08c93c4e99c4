"""Configs that plan and training refuse with the name of the wrong field or module; the model is
left as it was.
"""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from variants import VARIANTS

import qpeft
from qpeft import methods
from qpeft.core import generated_tuner
from qpeft.errors import ConfigError, QpeftWarning

BAD = {  # the settings, and what the message names
    "qpa": [
        ({"budget": 0.5}, "chunk_size.*budget"),
        ({"chunk_size": None, "budget": 10}, "budget"),
        ({"hidden": (6, 0)}, "hidden"),
        ({"features": 12}, "features.*8 or 16"),
        ({"features": 2**18}, "features"),
        ({"ansatz": "ry_lader"}, "ansatz.*'ry_ladder'"),
        ({"n_layers": 0}, "n_layers"),
        ({"activation": "relu"}, "activation.*silu"),
        ({"init_lora_weights": "loftq"}, "loftq_config"),
        ({"qalora_group_size": 4}, "qalora_group_size"),
        ({"runtime_config": {"ephemeral_gpu_offload": True}}, "LoraRuntimeConfig"),
        ({"modules_to_save": "lm_haed"}, "'lm_haed'.*'lm_head'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_modules": ["q_porj"]}, "target_modules.*'q_porj'.*'q_proj'"),
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules.*'c_attn'"),
        ({"target_modules": r".*\.nothing"}, "target_modules.*q_proj"),
        ({"target_modules": "("}, "target_modules"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save.*'lm_haed'.*'lm_head'"),
        ({"rank_pattern": {"w_q": 2}}, "rank_pattern.*w_q"),
        ({"alpha_pattern": {"q_proj": 1, "layers.1.*": 2}}, "alphabetical"),
        ({"rank_pattern": {"q_proj": 1, "layers.1.*": 2}}, "of rank_pattern.*alphabetical"),
        ({"target_parameters": ["wieght"]}, "target_parameters.*'wieght'.*'weight'"),
        ({"target_parameters": ["q_proj.weight"]}, "self_attn.q_proj"),
    ],
    "quantum_peft": [
        ({"r": 17}, "r=17 exceeds 16"),
        ({"bits": 5}, "bits"),
        ({"family": "lie", "lie_rank": 9}, "lie_rank=9 exceeds r=8"),
        ({"frame": "gradient", "frame_rank": 2}, r"exceeds 2, .*self_attn\.q_proj"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights"),
        ({"family": "core"}, "frame="),
        ({"family": "core", "frame": "random", "freeze_angles": True}, "freeze_angles"),
        ({"frame": "columns"}, "frame.*gradient"),
        ({"frame": "random", "columns": "spread"}, "columns"),
        ({"frame": "random", "frames": "x"}, "frames"),
        ({"frames": "x"}, "frame file"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"model\.embed_tokens"),
    ],
    "qaa": [
        ({"ansatz": "cube"}, "ansatz"),
        ({"n_layers": 9}, "n_layers must be at most 8"),
        ({"readout": "last_r", "n_read": 5}, "n_read=5 exceeds 4, .*q_proj"),
        ({"readout": "last_r", "feature_source": "none"}, "readout='z'"),
        ({"out_slices": [[0, 8], [12, 17]]}, "out_slices.*17"),
        ({"out_slices": [[8, 4]]}, "out_slices.*8, 4"),
        ({"out_slices": 2}, "pairs"),
        ({"out_slices": [[0, 1.5]]}, "pairs"),
    ],
    "sora": [
        ({"sparse_lambda": 0.1, "shrink_budget": 1.0}, "sparse_lambda"),
        ({"shrink_budget": -1.0}, "shrink_budget"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
    "cua": [
        ({"block_size": 1}, "block_size"),
        ({"layers_pattern": "h"}, "layers_to_transform"),
        ({"readout": "magnitudes"}, "readout.*'magnitude'"),
        ({"block_size": 17}, "block_size=17 is more than 16, .*q_proj"),
    ],
    "quic": [
        ({"n_blocks": 17}, "n_blocks=17 is more than 16, .*q_proj"),
        ({"n_blocks": 8, "order": 3}, "order=3 does not fit blocks of 2"),
    ],
    "quanta": [
        ({"axes": [16]}, "axes must be two or more"),
        ({"axes": [1, 16]}, "axes must be two or more"),
        ({"axes": (3, 5)}, r"axes \[3, 5\] have 15 places, fewer than the 16 values of .*q_proj"),
    ],
    "bottleneck": [
        ({"bottleneck_size": 0}, "bottleneck_size"),
        ({"bottleneck_size": 2**16 + 1}, "at most 65,536"),
        ({"target_modules": ["mlpp"]}, "target_modules.*'mlp'"),
        ({"target_modules": ["mlp", "up_proj"]}, "mlp.*up_proj"),
        ({"target_modules": ["layers"]}, "layers"),
        ({"target_modules": ["act_fn"]}, "act_fn"),
    ],
}
USUAL = {
    "qpa": {"chunk_size": 16, "hidden": (6, 5), "target_modules": "all-linear"},
    "quantum_peft": {"target_modules": "all-linear"},
}
ROWS = [(method, settings, named) for method, rows in BAD.items() for settings, named in rows]


def config(method, settings):
    return methods.get(method).config_class(
        **{"task_type": "CAUSAL_LM", **USUAL.get(method, {}), **settings}
    )


@pytest.mark.parametrize("method", ["qpa", "quantum_peft", "sora", "cua"])
@pytest.mark.parametrize(
    "settings, named",
    [
        ({"layers_to_transform": [0, 7]}, "layers_to_transform: the model does not have 7"),
        ({"exclude_modules": ["q_proj", "qq"]}, "exclude_modules: the model does not have qq"),
    ],
    ids=str,
)
def test_layers_and_names_that_the_model_does_not_have_are_a_warning(
    llama, method, settings, named
):
    with pytest.warns(UserWarning, match=named):
        get_peft_model(llama, config(method, {"target_modules": ["v_proj"], **settings}))


@pytest.mark.parametrize("method, settings, named", ROWS, ids=str)
def test_invalid_config(llama, ids, adapters, method, settings, named):
    before = adapters.logits(llama, ids)
    modules = dict(llama.named_modules())
    for use in (qpeft.plan, get_peft_model):
        with pytest.raises(ConfigError, match=named):
            use(llama, config(method, settings))

    assert dict(llama.named_modules()) == modules
    assert all(p.requires_grad for p in llama.parameters())
    assert not llama._forward_pre_hooks
    assert adapters.logits(llama, ids).equal(before)


@pytest.mark.parametrize(
    "method, settings, named",
    [
        ("qpa", {"hidden": (), "activation": "identity"}, "no effect without hidden layers"),
        ("qpa", {"hidden": (), "init_lora_weights": False}, "no effect with init_mode='small'"),
        ("quantum_peft", {"lie_rank": 2}, "no effect with family='pauli', only with 'lie'"),
        ("quantum_peft", {"family": "core", "frame": "random", "n_layers": 1}, "n_layers=1"),
        ("qaa", {"n_read": 3}, "no effect with readout='z'"),
        ("quanta", {"bond": 2}, "no effect with form='gates'"),
        ("quic", {"order": 1, "multiplier": "random"}, "no effect with order=1"),
    ],
)
def test_setting_without_effect_is_named(method, settings, named):
    with pytest.warns(QpeftWarning, match=named):
        config(method, settings)


@pytest.mark.parametrize("method", BAD)
def test_invalid_second_adapter(llama, ids, adapters, method):
    """Its targets cannot be adapted; the first one is left as it was."""
    model = get_peft_model(llama, config(method, {})).eval()
    before = adapters.logits(model, ids)

    with pytest.raises(ConfigError, match=r"q_prj|k_proj"):
        model.add_adapter("more", config(method, {"target_modules": ["q_prj"]}))
    assert list(model.peft_config) == ["default"]
    assert adapters.logits(model, ids).equal(before)


def test_interruption_while_an_adapter_is_made_is_no_error_of_the_config(llama, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    modules = dict(llama.named_modules())
    monkeypatch.setattr(generated_tuner, "record_or_check_base", interrupt)

    with pytest.raises(KeyboardInterrupt):
        get_peft_model(llama, config("qpa", {"modules_to_save": ["lm_head"]}))
    assert dict(llama.named_modules()) == modules  # not the copy that is trained


@pytest.mark.parametrize("make", [qpeft.QAAConfig, qpeft.BottleneckConfig])
def test_model_without_known_modules(make):
    with pytest.raises(ConfigError, match="target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), make())


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("qpa", "init_lora_weights", "pissa"),
        ("quantum_peft", "init_lora_weights", "olora"),
        ("sora", "layer_replication", [[0, 1], [0, 2]]),
        ("cua", "side", "left"),
        ("bottleneck", "bottleneck_size", 0),
    ],
)
def test_field_that_was_set_later_is_checked_as_when_the_config_is_made(llama, name, field, value):
    before = {key: value.clone() for key, value in llama.state_dict().items()}
    config = VARIANTS[name].make_config()
    setattr(config, field, value)
    with pytest.raises(ConfigError, match=field):
        get_peft_model(llama, config)
    assert all(torch.equal(value, before[key]) for key, value in llama.state_dict().items())
