"""What all PEFT configs of qpeft have in common; the optimizer groups of their adapters."""

import copy
import dataclasses
import pickle

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from variants import move

import qpeft
from qpeft.errors import ConfigError
from qpeft.methods.attach import AttachedConfig

# every field that may be given as a tuple
TARGETS = {
    "target_modules": ("q_proj", "v_proj"),
    "exclude_modules": ("x",),
    "modules_to_save": ("y",),
}
LAYERS = {"layers_to_transform": (0, 1), "layers_pattern": ("h",)}
CONFIGS = [
    (
        qpeft.QPAConfig,
        {
            **TARGETS,
            **LAYERS,
            "hidden": (4, 5),
            "target_parameters": ("a", "b"),
        },
    ),
    (qpeft.QPAConfig, {"hidden": ()}),
    (qpeft.QuantumPeftConfig, TARGETS | LAYERS),
    (qpeft.SoRAConfig, TARGETS | LAYERS),
    (qpeft.QAAConfig, {**TARGETS, **LAYERS, "out_slices": ((0, 4), (4, 8))}),
    (qpeft.BottleneckConfig, TARGETS | LAYERS),
    (AttachedConfig, {"host": {"peft_type": "LORA"}, "generated": (["a", [2]],)}),
]


@pytest.mark.parametrize("config, settings", CONFIGS)
def test_loaded_and_copied_configs_equal_the_saved_one(config, settings, tmp_path):
    saved = config(**settings)
    saved.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))

    assert type(loaded) is config
    assert loaded == saved
    assert loaded.to_dict() == saved.to_dict()

    found = config.from_json_file(str(tmp_path / "adapter_config.json"))
    assert {k: sorted(v) if isinstance(v, set) else v for k, v in saved.to_dict().items()} == found

    unpickled = pickle.loads(pickle.dumps(saved))  # noqa: S301 it was made here
    for same in (
        copy.copy(saved),
        copy.deepcopy(saved),
        unpickled,
        dataclasses.replace(saved),
    ):
        assert type(same) is config
        assert dataclasses.asdict(same) == dataclasses.asdict(saved)


@pytest.mark.parametrize("config", dict.fromkeys(config for config, _ in CONFIGS))
def test_config_takes_keyword_arguments_only(config):
    example = (
        "r=8" if "r" in {field.name for field in dataclasses.fields(config)} else "target_modules="
    )
    with pytest.raises(ConfigError, match=f"keyword arguments only.*such as {example}"):
        config(8)


@pytest.mark.parametrize("config", [qpeft.QPAConfig, qpeft.QuantumPeftConfig])
def test_functions_of_peft_that_cannot_work_are_refused(config, llama):
    """As docs/from_lora.md has it."""
    given = config(
        target_modules=["q_proj"], r=2, **({"chunk_size": 8} if config is qpeft.QPAConfig else {})
    )
    with pytest.raises(ValueError, match="use `get_peft_model` instead"):
        inject_adapter_in_model(given, copy.deepcopy(llama))

    model = get_peft_model(llama, given)
    model.add_adapter("other", given)
    with pytest.raises(ConfigError):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean")


@pytest.mark.parametrize(
    "config", [qpeft.QAAConfig, qpeft.CUAConfig, qpeft.QuICConfig, qpeft.QuanTAConfig]
)
def test_injection_by_peft_works_without_a_generator(config, llama, ids, tmp_path):
    """As docs/from_lora.md has it: as in a `PeftModel`."""
    given = config(target_modules=["q_proj"])
    whole = move(get_peft_model(copy.deepcopy(llama), given))
    injected = inject_adapter_in_model(given, copy.deepcopy(llama))
    set_peft_model_state_dict(injected, get_peft_model_state_dict(whole))

    assert torch.equal(injected(ids).logits, whole(ids).logits)
    assert not torch.equal(injected(ids).logits, llama(ids).logits)


@pytest.mark.parametrize("config", [LoraConfig, qpeft.QAAConfig, qpeft.CUAConfig])
def test_second_save_by_transformers_can_be_loaded(config, llama, ids, tmp_path):
    """It writes the config before the weights, next to those of the save before."""
    model = copy.deepcopy(llama)
    model.add_adapter(config(target_modules=["q_proj"]))
    for _ in range(2):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        model.save_pretrained(tmp_path)

    loaded = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


GROUPS = {
    "qpa": (
        qpeft.QPAConfig(
            r=4,
            target_modules=["q_proj"],
            chunk_size=16,
            hidden=(6, 5),
            n_layers=3,
        ),
        {"angles": 0.0, "map": 0.1, "other": 0.1},
    ),
    "quantum_peft": (
        qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"]),
        {"angles": 0.0, "lambda": 0.0, "other": 0.1},
    ),
    "sora": (qpeft.SoRAConfig(r=2, target_modules=["q_proj"]), {"gates": 0.0, "other": 0.1}),
    "qaa": (qpeft.QAAConfig(), {"angles": 0.0, "V": 0.1, "offset": 0.0, "other": 0.1}),
}


@pytest.mark.parametrize("method", GROUPS)
def test_decay_of_the_groups(llama, method):
    config, expected = GROUPS[method]
    config.modules_to_save = ["model.norm", "lm_head"]
    model = get_peft_model(llama, config)
    groups = qpeft.param_groups(model, lr=1e-3, weight_decay=0.1)

    assert {group["name"]: group["weight_decay"] for group in groups} == expected
    with pytest.raises(ConfigError, match="no trainable parameter"):
        qpeft.param_groups(model.requires_grad_(False), lr=1e-3)


def test_frozen_angles_are_in_no_group_and_unknown_parameters_in_group_other(llama):
    config = qpeft.QuantumPeftConfig(
        r=3,
        n_layers=1,
        target_modules=["q_proj"],
        freeze_angles=True,
    )
    model = get_peft_model(llama, config)
    assert [group["name"] for group in qpeft.param_groups(model, lr=1e-3)] == ["lambda"]

    own = model.base_model.generators["default"].own = torch.nn.Parameter(torch.zeros(1))
    (group,) = [group for group in qpeft.param_groups(model, lr=1e-3) if group["name"] == "other"]
    assert group["params"] == [own]
