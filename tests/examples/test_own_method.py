"""The PEFT method of examples/own_method.py: its contract, its equation, names that are taken."""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft import methods
from qpeft.errors import CheckpointError, ConfigError
from qpeft.testing import adapter_contract


@pytest.fixture(scope="module")
def own(example):
    return example("own_method")


def config(own, **settings):
    return own.NolaConfig(**{"r": 2, "n_bases": 4, "target_modules": ["q_proj", "down_proj"], **settings})


def test_contract(own, llama, ids):
    adapter_contract(lambda: copy.deepcopy(llama), lambda: config(own), {"input_ids": ids, "labels": ids})


def test_factors_equal_the_equation(own, llama, ids, adapters):
    model = get_peft_model(llama, config(own))
    binding = model.base_model.generators.bindings["default"]
    start = binding.values()
    adapters.train(model, ids)
    generator = model.base_model.generators["default"]
    assert generator.mixes.tau.shape == (len(binding.slots), 4)
    bases = generator.bases.split(binding.sizes, dim=1)
    for before, after, mix, random in zip(start, binding.values(), generator.mixes(), bases, strict=True):
        expected = before + torch.einsum("k,k...->...", mix, random.view(4, *before.shape))
        torch.testing.assert_close(after, expected.detach(), atol=1e-6, rtol=0)


def test_taken_names_raise(own):
    for name in ("LORA", "QPEFT_QPA", "NOLA"):
        other = type("Other", (own.NolaConfig,), {"peft_type": property(lambda _, name=name: name, lambda *_: None)})
        with pytest.raises(ConfigError, match=f"there is already the PEFT type '{name}'"):
            methods.register(methods.Method(key="other", title="other", config=other, tuner=own.NolaModel))
    methods.register(own.METHOD)  # the same again
    assert "other" not in methods.keys()  # noqa: SIM118 a function


def test_reloaded_module_replaces_the_registration(own, monkeypatch):
    from peft import mapping

    before = own.NolaConfig
    monkeypatch.syspath_prepend(str(Path(own.__file__).parent))
    importlib.reload(own)
    assert own.NolaConfig is not before
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["NOLA"] is own.NolaConfig
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING["NOLA"] is own.NolaModel


@pytest.mark.parametrize(
    "wrong",
    [{"key": ""}, {"key": "a:b"}, {"key": "lora"}, {"config": dict}, {"config": LoraConfig, "tuner": int}],
    ids=str,
)
def test_invalid_registration_raises_and_changes_nothing(own, wrong):
    fields = {"key": "other", "title": "other", "config": own.NolaConfig, "tuner": own.NolaModel}
    before = methods.keys()
    with pytest.raises(ConfigError):
        methods.register(methods.Method(**{**fields, **wrong}))
    assert methods.keys() == before


def test_folder_of_an_unregistered_method_raises(own, llama, tmp_path):
    qpeft.save(get_peft_model(copy.deepcopy(llama), config(own)), tmp_path / "compact")
    assert "import own_method  # registers NolaConfig\nimport qpeft" in (tmp_path / "compact/README.md").read_text()
    path = tmp_path / "compact/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "ALON"}))
    with pytest.raises(CheckpointError, match=r"unknown peft_type 'ALON'.*--method FILE"):
        qpeft.load(llama, tmp_path / "compact")


def test_registered_method_is_found_by_key_and_planned(own, llama):
    assert methods.get("nola") is own.METHOD
    with pytest.raises(ConfigError, match="unknown method 'nolla'; did you mean 'nola'"):
        methods.get("nolla")
    with pytest.raises(ConfigError, match="there is already the method 'lora'"):
        methods.register(replace(own.METHOD, key="lora"))
    plan = qpeft.plan(llama, config(own))
    assert plan.method == "nola"
    assert plan.trainable == get_peft_model(copy.deepcopy(llama), config(own)).get_nb_trainable_parameters()[0]
    with pytest.raises(ConfigError, match="no circuit that a backend can run"):
        qpeft.plan(llama, config(own), shots=512)
