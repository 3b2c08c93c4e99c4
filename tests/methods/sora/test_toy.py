"""A noisy linear target of rank 4: the effect of the budget on 16 gates."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import qpeft

D, R, STEPS, WARMUP = 32, 16, 300, 18


def learn(shrink_budget):
    """Zero gates, and the share of the target that is missed."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(D, 4, generator=draw) @ torch.randn(4, D, generator=draw) / D**0.5
    base = nn.Sequential(nn.Linear(D, D, bias=False))
    nn.init.zeros_(base[0].weight)
    config = qpeft.SoRAConfig(r=R, lora_alpha=R, target_modules=["0"], shrink_budget=shrink_budget)
    model = get_peft_model(base, config).train()
    optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=1.3e-2))
    schedule = LambdaLR(optimiser, lambda t: t / WARMUP if t < WARMUP else (STEPS - t) / (STEPS - WARMUP))
    qpeft.SoRACallback.attach(optimiser, model, steps=STEPS, schedule=schedule)
    for _ in range(STEPS):
        x = torch.randn(64, D, generator=draw)
        y = x @ target.T + 0.5 * torch.randn(64, D, generator=draw)
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()
        schedule.step()
    layer = model.base_model.model[0]
    missed = (layer.get_delta_weight("default") - target).square().sum() / target.square().sum()
    return int((layer.lora_B["default"].sora_gate.g == 0).sum()), missed.item()


@pytest.mark.long
def test_larger_budgets_give_more_zero_gates():
    (none, exact), (some, near), (all_of_them, lost) = learn(0.0), learn(2.0), learn(6.0)
    assert none == 0
    assert 3 <= some <= R - 4  # of the 12 that the target does not need
    assert all_of_them == R
    assert exact < near < 0.01 < lost == 1.0
