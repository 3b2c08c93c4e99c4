"""Optimizer groups: every trainable tensor in one group, and weight decay only where 0 is a special value."""

import pytest
import torch
from peft import get_peft_model

import qpeft
from qpeft.errors import ConfigError


def quantum_peft(base, **settings):
    return get_peft_model(base, qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"], **settings))


GROUPS = {
    "qpa": (
        qpeft.QPAConfig(r=4, target_modules=["q_proj"], chunk_size=16, hidden=(6, 5), n_layers=3),
        {"angles": 0.0, "map": 0.1, "other": 0.1},
    ),
    "quantum_peft": (
        qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"]),
        {"angles": 0.0, "lambda": 0.0, "gains": 0.0, "other": 0.1},
    ),
    "qaa": (qpeft.QAAConfig(), {"angles": 0.0, "V": 0.1, "offset": 0.0, "other": 0.1}),
}


@pytest.mark.parametrize("method", GROUPS)
def test_groups_contain_every_trainable_tensor_once(llama, ids, method):
    config, expected = GROUPS[method]
    config.modules_to_save = ["model.norm", "lm_head"]
    model = get_peft_model(llama, config)
    groups = qpeft.param_groups(model, lr=1e-3, weight_decay=0.1)
    assert {group["name"]: group["weight_decay"] for group in groups} == expected
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(groups)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with pytest.raises(ConfigError, match="no trainable parameter"):
        qpeft.param_groups(model.requires_grad_(False), lr=1e-3)


def test_frozen_angles_are_in_no_group(llama):
    groups = qpeft.param_groups(quantum_peft(llama, freeze_angles=True), lr=1e-3)
    assert [group["name"] for group in groups] == ["lambda"]


def test_unknown_parameters_of_a_generator_are_in_group_other(llama):
    model = quantum_peft(llama)
    own = model.base_model.generators["default"].own = torch.nn.Parameter(torch.zeros(1))
    (group,) = [group for group in qpeft.param_groups(model, lr=1e-3) if group["name"] == "other"]
    assert group["params"] == [own]
