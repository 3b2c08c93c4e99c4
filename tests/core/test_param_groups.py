"""Optimizer groups: weight decay only where 0 is a special value. `test_matrix.py` finds every tensor in one group."""

import pytest
import torch
from peft import get_peft_model

import qpeft
from qpeft.errors import ConfigError

GROUPS = {
    "qpa": (
        qpeft.QPAConfig(r=4, target_modules=["q_proj"], chunk_size=16, hidden=(6, 5), n_layers=3),
        {"angles": 0.0, "map": 0.1, "other": 0.1},
    ),
    "quantum_peft": (
        qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"]),
        {"angles": 0.0, "lambda": 0.0, "gains": 0.0, "other": 0.1},
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
    config = qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"], freeze_angles=True)
    model = get_peft_model(llama, config)
    assert [group["name"] for group in qpeft.param_groups(model, lr=1e-3)] == ["lambda"]
    own = model.base_model.generators["default"].own = torch.nn.Parameter(torch.zeros(1))
    (group,) = [group for group in qpeft.param_groups(model, lr=1e-3) if group["name"] == "other"]
    assert group["params"] == [own]
