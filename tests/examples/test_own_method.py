"""The PEFT method of examples/own_method.py: its contract, plans, folders."""

import copy

import pytest
from folders import edit_config
from peft import get_peft_model

import qpeft
from qpeft import methods
from qpeft.errors import CheckpointError, ConfigError
from qpeft.testing import adapter_contract


@pytest.fixture(scope="module")
def own(example):
    return example("own_method")


def config(own, **settings):
    return own.NolaConfig(
        **{"r": 2, "n_bases": 4, "target_modules": ["q_proj", "down_proj"], **settings}
    )


def test_contract(own, llama, ids):
    adapter_contract(
        lambda: copy.deepcopy(llama), lambda: config(own), {"input_ids": ids, "labels": ids}
    )


def test_method_is_found_by_key_and_planned(own, llama):
    assert methods.get("nola") is own.METHOD

    plan = qpeft.plan(llama, config(own))
    assert plan.method == "nola"
    assert (
        plan.trainable
        == get_peft_model(copy.deepcopy(llama), config(own)).get_nb_trainable_parameters()[0]
    )
    with pytest.raises(ConfigError):
        qpeft.plan(llama, config(own), shots=512)  # no circuit that a backend can run


def test_folder_of_an_unregistered_method_raises(own, llama, tmp_path):
    qpeft.save(get_peft_model(copy.deepcopy(llama), config(own)), tmp_path / "compact")
    assert (
        "import own_method  # registers NolaConfig\nimport qpeft"
        in (tmp_path / "compact/README.md").read_text()
    )

    edit_config(tmp_path / "compact", peft_type="ALON")
    with pytest.raises(CheckpointError, match="'ALON'"):
        qpeft.load(llama, tmp_path / "compact")
