"""The limit of QAA: its update is even in the input, so it fits no linear change on inputs symmetric about 0."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import qpeft
from qpeft.methods.qaa.settings import ANSATZE

WIDTH = 32


def adapted(config):
    base = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    nn.init.zeros_(base[0].weight)
    return get_peft_model(base, config)


def fit(model, x, target):
    """The share of the target's variance, R^2, that the model explains after 150 steps."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimiser.step()
    with torch.no_grad():
        return 1 - (model(x) - target).square().sum().item() / target.square().sum().item()


@pytest.fixture
def linear_task():
    """Inputs in pairs x, -x, and a linear map of rank 3."""
    half = torch.randn(300, WIDTH)
    x = torch.cat([half, -half])
    return x, x @ torch.randn(WIDTH, 3) @ torch.randn(3, WIDTH) / WIDTH


@pytest.mark.long
@pytest.mark.parametrize("settings", [*({"ansatz": a} for a in ANSATZE), {"carry_norm": True}], ids=str)
def test_qaa_cannot_fit_an_odd_linear_change_that_lora_fits(linear_task, settings):
    x, target = linear_task
    qaa = adapted(qpeft.QAAConfig(target_modules=["0"], **settings))
    lora = adapted(LoraConfig(r=3, target_modules=["0"]))
    # the best fit of an even function to an odd one is 0: training can only come near to it from below
    assert fit(qaa, x, target) <= 1e-6
    assert fit(lora, x, target) > 0.9
    with torch.no_grad():
        f = qaa.base_model.model[0].qaa_branch["default"].read(x)
        covariance = f.T @ target
        assert covariance.abs().max() <= 1e-4 * f.norm() * target.norm()


def test_linear_control_fits_part_of_an_odd_linear_change(linear_task):
    x, target = linear_task
    assert fit(adapted(qpeft.QAAConfig(target_modules=["0"], feature_source="linear")), x, target) > 0.03
