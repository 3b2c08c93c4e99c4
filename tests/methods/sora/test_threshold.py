"""The proximal step: formula, lambda of a budget, optimizers and schedules, skipped steps, errors."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau

import qpeft
from qpeft import SoRACallback
from qpeft.errors import ConfigError

attach = SoRACallback.attach


def tiny(**settings):
    """One Linear with gates."""
    return get_peft_model(nn.Sequential(nn.Linear(6, 5)), qpeft.SoRAConfig(r=5, target_modules=["0"], **settings))


def gate_of(model):
    return next(gate for _, _, gate in model.base_model.gates())


def set_gate(model, values):
    with torch.no_grad():
        gate_of(model).copy_(torch.tensor(values))


def manual(gate, k):
    """sign(v) max(|v| - k, 0)"""
    return gate.sign() * (gate.abs() - k).clamp_min(0)


def loss_of(model):
    return model(torch.linspace(-1, 1, 24).view(4, 6)).square().mean()


def linear_to_zero(optimiser, steps):
    return LambdaLR(optimiser, lambda step: 1 - step / steps)


def test_soft_threshold_of_known_values():
    model = tiny(sparse_lambda=1.0)
    set_gate(model, [0.5, -0.2, 0.05, -0.1, 0.0])
    optimiser = torch.optim.SGD([gate_of(model)], lr=0.1)
    gate_of(model).grad = torch.zeros(5)
    attach(optimiser, model)
    optimiser.step()
    torch.testing.assert_close(gate_of(model).detach(), torch.tensor([0.4, -0.1, 0.0, 0.0, 0.0]))
    assert (gate_of(model) == 0).sum() == 3


def test_gate_without_gradient_moves_by_the_budget():
    model = tiny(shrink_budget=1.0)
    set_gate(model, [0.9, -0.9, 1.1, -1.1, 0.999])
    optimiser = torch.optim.SGD([gate_of(model)], lr=0.05)
    schedule = linear_to_zero(optimiser, 40)
    attach(optimiser, model, steps=40, schedule=schedule)
    for _ in range(40):
        gate_of(model).grad = torch.zeros(5)
        optimiser.step()
        schedule.step()
    torch.testing.assert_close(gate_of(model).detach(), torch.tensor([0, 0, 0.1, -0.1, 0]), atol=1e-6, rtol=0)
    assert (gate_of(model) == 0).sum() == 3


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor, torch.optim.RMSprop])
def test_hook_equals_a_manual_threshold(kind):
    def run(by_hook):
        torch.manual_seed(0)
        model, zeros = tiny(sparse_lambda=0.7), 0
        set_gate(model, [1.0, -0.5, 0.01, -0.02, 0.1])
        optimiser = kind(qpeft.param_groups(model, lr=0.05), lr=0.05, weight_decay=0)
        schedule = LambdaLR(optimiser, lambda step: min(1.0, step / 3) * (1 - step / 12))
        threshold = attach(optimiser, model, schedule=schedule)
        if not by_hook:
            threshold.remove()
            model.base_model.shrinks = True  # nothing to warn of
        for _ in range(12):
            optimiser.zero_grad()
            loss_of(model).backward()
            optimiser.step()
            if not by_hook:
                rate = next(g["lr"] for g in optimiser.param_groups if g["name"] == "gates")
                with torch.no_grad():
                    gate_of(model).copy_(manual(gate_of(model), rate * 0.7))
            zeros += int((gate_of(model) == 0).sum())
            schedule.step()
        return gate_of(model).detach(), zeros

    (hooked, zeros), (by_hand, _) = run(by_hook=True), run(by_hook=False)
    assert torch.equal(hooked, by_hand)
    assert zeros > 0


@pytest.mark.parametrize("make", [ReduceLROnPlateau, lambda optimiser: CosineAnnealingLR(optimiser, 10)])
def test_schedule_that_cannot_be_evaluated_in_advance_needs_sparse_lambda(make):
    model = tiny()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ConfigError, match="sparse_lambda"):
        attach(optimiser, model, steps=10, schedule=make(optimiser))
    fixed = tiny(sparse_lambda=0.5)
    optimiser = torch.optim.SGD(fixed.parameters(), lr=0.05)
    attach(optimiser, fixed, schedule=ReduceLROnPlateau(optimiser))
    assert fixed.peft_config["default"].sora_lambda == 0.5


@pytest.mark.parametrize("fused", [False, True])
def test_step_skipped_by_the_gradient_scaler_does_not_shrink(fused):
    model = tiny(sparse_lambda=1.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0, fused=fused)
    attach(optimiser, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = gate_of(model).detach().clone()
    for overflow, shrinks in ((True, False), (False, True)):
        optimiser.zero_grad()
        scaler.scale(loss_of(model) * (torch.inf if overflow else 1.0)).backward()
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(gate_of(model), manual(before, 0.1)) == shrinks
        assert torch.equal(gate_of(model), before) != shrinks


def test_accumulation_and_clipping_under_accelerate():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = tiny(shrink_budget=0.1)
    start = gate_of(model).detach().clone()
    optimiser = torch.optim.AdamW([gate_of(model)], lr=0.05, weight_decay=0)  # with B = 0 its gradient is 0
    model, optimiser, schedule = accelerator.prepare(model, optimiser, linear_to_zero(optimiser, 4))
    attach(optimiser, model, steps=4, schedule=schedule)
    rates = []
    optimiser.optimizer.register_step_post_hook(lambda *_: rates.append(optimiser.param_groups[0]["lr"]))
    for _ in range(8):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    assert rates == pytest.approx([0.05, 0.0375, 0.025, 0.0125])
    torch.testing.assert_close(gate_of(model).detach(), manual(start, 0.1))


def test_resumed_custom_loop_ends_with_equal_gates(tmp_path):
    """The states of the optimizer and the schedule are loaded by the user."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5))

    def tools(model):
        optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=0.05))
        return optimiser, linear_to_zero(optimiser, 10)

    def advance(model, optimiser, schedule, n):
        for _ in range(n):
            optimiser.zero_grad()
            loss_of(model).backward()
            optimiser.step()
            schedule.step()

    model = get_peft_model(build(), qpeft.SoRAConfig(r=5, target_modules=["0"]))
    optimiser, schedule = tools(model)
    attach(optimiser, model, steps=10, schedule=schedule)
    sora_lambda = model.peft_config["default"].sora_lambda  # 3.636; the user chose no lambda, so nothing warns
    advance(model, optimiser, schedule, 4)
    model.save_pretrained(tmp_path)
    saved = copy.deepcopy((optimiser.state_dict(), schedule.state_dict()))
    advance(model, optimiser, schedule, 6)

    again = qpeft.load(build(), tmp_path, is_trainable=True)
    optimiser, schedule = tools(again)
    optimiser.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    attach(optimiser, again, steps=10, schedule=schedule)
    assert again.peft_config["default"].sora_lambda == sora_lambda
    advance(again, optimiser, schedule, 6)
    assert torch.equal(gate_of(again), gate_of(model))


def test_attaching_again_shrinks_once():
    model = tiny(sparse_lambda=1.0)
    set_gate(model, [1.0] * 5)
    optimiser = torch.optim.SGD([gate_of(model)], lr=0.1)
    attach(optimiser, model)
    attach(optimiser, model)
    gate_of(model).grad = torch.zeros(5)
    optimiser.step()
    torch.testing.assert_close(gate_of(model).detach(), torch.full((5,), 0.9))


def test_two_active_adapters_have_separate_lambdas():
    model = tiny(shrink_budget=0.5)
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["0"], shrink_budget=0.25))
    model.base_model.set_adapter(["default", "other"])
    optimiser = torch.optim.SGD(qpeft.param_groups(model, lr=0.1), lr=0.1)
    attach(optimiser, model, steps=10)
    lambdas = {name: config.sora_lambda for name, config in model.peft_config.items()}
    assert lambdas == pytest.approx({"default": 0.5, "other": 0.25})


def test_sparse_lambda_above_one_warns_only_with_adam():
    model = tiny(sparse_lambda=1.5)
    with pytest.warns(UserWarning, match=r"sparse_lambda=1\.5"):
        attach(torch.optim.AdamW(model.parameters(), weight_decay=0), model)
    attach(torch.optim.SGD(model.parameters(), lr=0.1), model)  # warnings are errors


sgd = torch.optim.SGD
REFUSED = {  # (model, optimizer, arguments), and what the message names
    "weight decay": (lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.01), {}, {"steps": 5}, "weight_decay"),
    "not in the optimizer": (lambda m: sgd([torch.zeros(1, requires_grad=True)]), {}, {"steps": 5}, "param_groups"),
    "no steps": (lambda m: sgd(m.parameters(), lr=0.1), {}, {}, "steps"),
    "rate 0": (lambda m: sgd(m.parameters(), lr=0.0), {}, {"steps": 5}, "zero over the whole schedule"),
    "frozen": (lambda m: sgd([torch.zeros(1)]), {"inference_mode": True}, {"steps": 5}, "is_trainable"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attach_errors(case):
    optimiser, settings, how, named = REFUSED[case]
    model = tiny(**settings)
    with pytest.raises(ConfigError, match=named):
        attach(optimiser(model), model, **how)


def test_model_without_gates_is_refused():
    with pytest.raises(ConfigError, match="SoRAConfig"):
        attach(sgd([torch.zeros(1)]), nn.Linear(2, 2), steps=5)
