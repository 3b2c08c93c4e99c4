"""Optimiser groups of Quantum-PEFT: no decay where 0 means nothing, and no parameter without a group."""

import torch
from peft import get_peft_model

import qpeft


def quantum_peft(base, **settings):
    return get_peft_model(base, qpeft.QuantumPeftConfig(r=3, n_layers=1, target_modules=["q_proj"], **settings))


def test_every_trainable_tensor_is_in_one_group_and_decay_spares_the_generator(llama, ids):
    model = quantum_peft(llama, modules_to_save=["model.norm", "lm_head"])
    groups = qpeft.param_groups(model, lr=1e-3, weight_decay=0.1)
    decay = {group["name"]: group["weight_decay"] for group in groups}
    assert decay == {"angles": 0.0, "lambda": 0.0, "gains": 0.0, "other": 0.1}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert sizes == {"angles": 2 * 2 * 10, "lambda": 2 * 3, "gains": 16, "other": 16 * 50}
    optimiser = torch.optim.AdamW(groups)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()


def test_frozen_angles_are_in_no_group(llama):
    groups = qpeft.param_groups(quantum_peft(llama, freeze_angles=True), lr=1e-3)
    assert [group["name"] for group in groups] == ["lambda"]


def test_other_numbers_of_a_generator_are_in_the_group_of_others(llama):
    model = quantum_peft(llama)
    own = model.base_model.generators["default"].own = torch.nn.Parameter(torch.zeros(1))
    (group,) = [group for group in qpeft.param_groups(model, lr=1e-3) if group["name"] == "other"]
    assert group["params"] == [own]
