"""What a cell measures besides losses: time and memory of a step, and the ranks of the learned
updates.
"""

import copy
import json

import numpy as np
import pytest
import torch
from peft import (
    FourierFTConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from variants import move

import qpeft
from qpeft_lab.compare import measure
from qpeft_lab.compare.measure import measure_cost, rank_fields, stepping

LM = {"task_type": "CAUSAL_LM"}
LINEAR = {**LM, "target_modules": ["q_proj", "down_proj"]}
CONFIGS = {
    "lora": lambda: LoraConfig(**LINEAR, r=4),
    "sora": lambda: qpeft.SoRAConfig(**LINEAR, r=4),
    "qpa": lambda: qpeft.QPAConfig(**LINEAR, r=3, hidden=(6, 5), chunk_size=16, n_layers=2),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(**LINEAR, r=4),
    "vera": lambda: VeraConfig(**LINEAR, r=5),
    "fourierft": lambda: FourierFTConfig(**LINEAR, n_frequency=9),
    "qaa": lambda: qpeft.QAAConfig(**LM),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=3),
    "ia3": lambda: IA3Config(**LM),
}
ADD_TO_NO_WEIGHT = ("qaa", "prefix", "ia3")


def make(base, method):
    model = copy.deepcopy(base)
    return model if method == "full" else get_peft_model(model, CONFIGS[method]())


def moved(base, method):
    """A model whose trainable parameters have moved."""
    model = move(make(base, method), spread=0.1)
    model(torch.tensor([[1, 2]]))
    return model


def updates(model, base):
    """Weights after merging minus those of the base, float64."""
    merged = copy.deepcopy(model).merge_and_unload()
    weights = dict(base.named_parameters())
    changes = [
        (p - weights[name]).detach().double().numpy()
        for name, p in merged.named_parameters()
        if p.ndim == 2
    ]
    return [change for change in changes if abs(change).max() > 1e-6]


@pytest.mark.parametrize("method", CONFIGS)
def test_ranks_are_those_of_the_merged_update_by_numpy(llama, method):
    model = moved(llama, method)
    found = rank_fields(model)
    if method in ADD_TO_NO_WEIGHT:
        assert found == {}
        return
    singular = [np.linalg.svd(change, compute_uv=False) for change in updates(model, llama)]

    assert found["rank_numerical"] == np.mean([(s > 1e-5 * s[0]).sum() for s in singular])

    shares = [s / s.sum() for s in singular]
    expected = np.mean([np.exp(-(p * np.log(p + 1e-300)).sum()) for p in shares])
    assert found["rank_effective"] == pytest.approx(expected, rel=1e-3)


def test_planted_rank_is_found(llama):
    model = moved(llama, "lora")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data[:, 2:] = 0
    assert rank_fields(model)["rank_numerical"] == 2


def batches():
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(50, (2, 3, 9))]


@pytest.mark.parametrize("method", ["lora", "qpa", "sora", "qaa", "prefix", "full"])
def test_methods_are_measured_and_built_once(llama, method, monkeypatch):
    built = []  # of the method, the reference, and this again
    seconds = [0.003] + [0.003, 0.002, 0.0025] * 5
    monkeypatch.setattr(
        measure, "now", iter([at for spent in seconds for at in (0.0, spent)]).__next__
    )

    def making(key):
        return lambda: built.append(key) or make(llama, key)

    cost = measure_cost(making(method), making("lora"), batches(), warm_up=1, timed=4)
    json.dumps(cost, allow_nan=False)

    assert built == [method, "lora"]
    assert (cost["step_ms"], cost["step_ratio"], cost["noise"]) == pytest.approx((3, 1.5, 0.25))
    assert cost["peak_mem_bytes"] > 10_000_000


def test_timed_step_trains(llama):
    # a generator that ran but once would cost nothing from the second step on
    model = make(llama, "qpa")
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    stepping(model)(batches()[0])
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
