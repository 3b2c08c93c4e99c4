"""Shared by the scripts: a tiny Llama with an adapter, the same in every process, and rows to train on."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "support"))

import tiny_models
from variants import VARIANTS, move

GENERATED = ("qpa", "quantum_peft", "attached to ia3")


def base():
    torch.manual_seed(0)
    return tiny_models.llama()


def adapted(variant, **changes):
    return VARIANTS[variant].adapt(base(), **changes).train()


def moved(variant):
    """An adapter that has left its start, where some gradients are 0, by little: large steps blow up rounding."""
    return move(adapted(variant), spread=0.005).train()


def rows(n):
    tokens = torch.randint(50, (n, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": t, "labels": t, "attention_mask": torch.ones_like(t)} for t in tokens]


def batch(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
