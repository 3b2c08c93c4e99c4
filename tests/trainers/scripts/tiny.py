"""Shared by the scripts: a tiny Llama with an adapter, the same in every process, and rows to train on."""

import copy
import sys
from pathlib import Path

import torch
from peft import LoHaConfig, get_peft_model

import qpeft

sys.path.append(str(Path(__file__).resolve().parents[2] / "support"))

import tiny_models

METHODS = ("qpa", "quantum_peft", "attached")


def base():
    torch.manual_seed(0)
    return tiny_models.llama()


def adapted(method, seed=0):
    """`seed` is torch's: the initial values of stock PEFT depend on it, those of qpeft do not."""
    model = base()
    torch.manual_seed(seed)
    common = {"target_modules": "all-linear", "r": 4, "task_type": "CAUSAL_LM"}
    if method == "attached":
        small = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3}
        stock = get_peft_model(model, LoHaConfig(**{**common, "target_modules": ["q_proj", "up_proj"]}))
        return qpeft.attach(stock, qpeft.QPAGeneratorConfig(**small)).train()
    config = qpeft.QPAConfig(n_layers=3, **common) if method == "qpa" else qpeft.QuantumPeftConfig(n_layers=2, **common)
    return get_peft_model(model, config).train()


def moved(method, steps=2, **options):
    """An adapter that has left its start, where some gradients are 0."""
    model = adapted(method, **options)
    optimiser = torch.optim.AdamW(trained(model).values(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch(rows(8))).loss.backward()
        optimiser.step()
    model.zero_grad()
    return copy.deepcopy(model)


def rows(n):
    tokens = torch.randint(50, (n, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": t, "labels": t, "attention_mask": torch.ones_like(t)} for t in tokens]


def batch(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_refused(action, kind, words):
    """`action` raises `kind` with `words` in its message."""
    message = "nothing was raised"
    try:
        action()
    except kind as error:
        message = str(error)
    if words not in message:
        raise AssertionError(f"expected a refusal with '{words}', but: {message}")
