"""Costs of every kind of method."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

import qpeft
from qpeft_lab.compare.measure import TrainingSteps, measure_cost

LM = {"task_type": "CAUSAL_LM"}
LINEAR = {**LM, "target_modules": "all-linear"}
CONFIGS = {
    "lora": lambda: LoraConfig(**LINEAR, r=2),
    "qpa": lambda: qpeft.QPAConfig(**LINEAR, r=2, hidden=(6, 5), chunk_size=16, n_layers=2),
    "sora": lambda: qpeft.SoRAConfig(**LINEAR, r=2),
    "qaa": lambda: qpeft.QAAConfig(**LM),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=3),
}


def batches(n=2):
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(50, (n, 3, 9))]


def make(base, method):
    model = copy.deepcopy(base)
    return model if method == "full" else get_peft_model(model, CONFIGS[method]())


@pytest.mark.parametrize("method", [*CONFIGS, "full"])
def test_methods_are_measured_and_built_once(llama, method):
    built = []

    def making(key):
        return lambda: built.append(key) or make(llama, key)

    found = measure_cost(making(method), making("lora"), batches(), warm_up=1, timed=4)
    json.dumps(found, allow_nan=False)
    assert built == [method, "lora"]
    assert found["step_ms"] > 0
    assert found["step_ratio"] > 0
    assert found["noise"] >= 0
    assert found["peak_mem_bytes"] > 10_000_000


def test_timed_step_trains(llama):
    # a generator that ran but once would cost nothing from the second step on
    model = make(llama, "qpa")
    run, batch = TrainingSteps(model), batches()[0]
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    run.step(batch)
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
