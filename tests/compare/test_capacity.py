"""The ranks of learned updates are those of the merged weights minus the base's, by NumPy."""

import copy

import numpy as np
import pytest
import torch
from peft import FourierFTConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, VeraConfig, get_peft_model
from tiny_models import llama

import qpeft
from qpeft_lab.compare.measure import rank_fields

LM = {"task_type": "CAUSAL_LM"}
LINEAR = {**LM, "target_modules": ["q_proj", "down_proj"]}
CONFIGS = {
    "lora": LoraConfig(**LINEAR, r=4),
    "sora": qpeft.SoRAConfig(**LINEAR, r=4),
    "qpa": qpeft.QPAConfig(**LINEAR, r=3, hidden=(6, 5), chunk_size=16, n_layers=2),
    "quantum_peft": qpeft.QuantumPeftConfig(**LINEAR, r=4),
    "vera": VeraConfig(**LINEAR, r=5),
    "fourierft": FourierFTConfig(**LINEAR, n_frequency=9),
    "full": None,
}


def trained(kind):
    """A model whose trainable parameters have moved, and the base's weights."""
    torch.manual_seed(0)
    base = llama()
    model = copy.deepcopy(base) if CONFIGS[kind] is None else get_peft_model(copy.deepcopy(base), CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model(torch.tensor([[1, 2]]))
    return model, base


def updates(model, base):
    """Weights after merging minus those of the base, float64."""
    merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
    weights = dict(base.named_parameters())
    changes = [(p - weights[name]).detach().double().numpy() for name, p in merged.named_parameters() if p.ndim == 2]
    return [change for change in changes if abs(change).max() > 1e-6]


@pytest.mark.parametrize("kind", CONFIGS)
def test_ranks_are_those_of_the_merged_update(kind):
    model, base = trained(kind)
    found = rank_fields(model, lambda: base)
    singular = [np.linalg.svd(change, compute_uv=False) for change in updates(model, base)]
    assert found["rank_numerical"] == np.mean([(s > 1e-5 * s[0]).sum() for s in singular])
    shares = [s / s.sum() for s in singular]
    expected = np.mean([np.exp(-(p * np.log(p + 1e-300)).sum()) for p in shares])
    assert found["rank_effective"] == pytest.approx(expected, rel=1e-3)


def test_planted_rank_is_found():
    model, base = trained("lora")
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight.requires_grad and layer.weight.shape[1] == 4:
            layer.weight.data[:, 2:] = 0  # lora_B
    assert rank_fields(model, lambda: base)["rank_numerical"] == 2


@pytest.mark.parametrize(
    "config", [PrefixTuningConfig(**LM, num_virtual_tokens=3), IA3Config(**LM), qpeft.QAAConfig(**LM)]
)
def test_method_that_adds_to_no_weight_has_no_ranks(config):
    assert rank_fields(get_peft_model(llama(), config), llama) == {}
