"""The proximal step: formula, lambda of a budget, optimizers and schedules, skipped steps, errors."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import qpeft
from qpeft import SoRACallback
from qpeft.errors import ConfigError, TrainingError
from qpeft.methods.sora.threshold import planned_learning_rates

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


def test_lambda_of_a_linear_schedule():
    model = tiny(shrink_budget=1.0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(optimiser, model, steps=40, schedule=linear_to_zero(optimiser, 40))
    assert model.peft_config["default"].sora_lambda == pytest.approx(1 / 1.025, abs=1e-12)
    assert model.peft_config["default"].planned_steps == 40


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


SCHEDULES = {
    "lambda": lambda optimiser: linear_to_zero(optimiser, 9),
    "cosine": lambda optimiser: CosineAnnealingLR(optimiser, 9),
    "step": lambda optimiser: StepLR(optimiser, 4, 0.5),
    "one cycle": lambda optimiser: OneCycleLR(optimiser, 0.1, total_steps=9),
    "sequence": lambda optimiser: SequentialLR(
        optimiser, [LambdaLR(optimiser, lambda step: (step + 1) / 3), CosineAnnealingLR(optimiser, 6)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_planned_learning_rates_equal_the_applied_ones(name):
    gate = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(1))], "lr": 0.3}, {"params": [gate]}], lr=0.05)
    schedule = SCHEDULES[name](optimiser)
    planned, state = planned_learning_rates(optimiser, 1, 9, schedule), copy.deepcopy(optimiser.state_dict())
    in_force = []
    optimiser.register_step_post_hook(lambda *_: in_force.append(optimiser.param_groups[1]["lr"]))
    assert optimiser.state_dict() == state  # planning changed nothing
    for _ in range(9):
        gate.grad = torch.zeros(3)
        optimiser.step()
        schedule.step()
    assert planned == pytest.approx(in_force, abs=1e-15)


def test_schedule_that_depends_on_a_metric_raises():
    model = tiny()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(
        ConfigError, match="shrink_budget needs a schedule that can be evaluated in advance; pass sparse"
    ):
        attach(optimiser, model, steps=10, schedule=ReduceLROnPlateau(optimiser))
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
    """The adapter folder contains lambda; the states of the optimizer and the schedule are loaded by the user."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5))

    def tools(model):
        optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=0.05))
        return optimiser, CosineAnnealingLR(optimiser, 10)

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
    optimiser, schedule = tools(again)
    schedule.last_epoch = 4
    with pytest.warns(
        UserWarning, match=r"planned steps changed from 10 to 12; keeping lambda=3\.63.* from the checkpoint"
    ):
        attach(optimiser, again, steps=12, schedule=schedule)


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
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["0"], shrink_budget=0.25, gate_lr_mult=2))
    model.base_model.set_adapter(["default", "other"])
    optimiser = torch.optim.SGD(qpeft.param_groups(model, lr=0.1), lr=0.1)
    attach(optimiser, model, steps=10)
    lambdas = {name: config.sora_lambda for name, config in model.peft_config.items()}
    assert lambdas == pytest.approx({"default": 0.5, "other": 0.125})


def test_sparse_lambda_above_one_warns_only_with_adam():
    model = tiny(sparse_lambda=1.5)
    with pytest.warns(UserWarning, match="SoRA: sparse_lambda=1.5 exceeds 1; with Adam-type optimizers"):
        attach(torch.optim.AdamW(model.parameters(), weight_decay=0), model)
    attach(torch.optim.SGD(model.parameters(), lr=0.1), model)  # warnings are errors


def test_non_finite_gate_raises():
    model = tiny(sparse_lambda=0.1)
    optimiser = torch.optim.SGD([gate_of(model)], lr=0.1)
    attach(optimiser, model)
    for step, value in ((1, 0.0), (2, torch.nan)):
        gate_of(model).grad = torch.full((5,), value)
        if step == 2:
            with pytest.raises(TrainingError, match=r"SoRA gate 0\.sora_gate\.default is not finite at step 2\."):
                optimiser.step()
        else:
            optimiser.step()


def refusals():
    model = tiny()
    sgd = torch.optim.SGD
    yield (
        model,
        torch.optim.AdamW(model.parameters(), weight_decay=0.01),
        {"steps": 5},
        (
            r"SoRA gate 0\.sora_gate\.default is in a parameter group with weight_decay=0\.01; gates need their own "
            r"group with weight_decay=0; use qpeft\.param_groups"
        ),
    )
    yield model, sgd([torch.zeros(1, requires_grad=True)]), {"steps": 5}, "is not in the optimizer"
    yield model, sgd(model.parameters(), lr=0.1), {}, r"distributed over the planned steps: give steps="
    yield model, sgd(model.parameters(), lr=0.0), {"steps": 5}, "zero over the whole schedule; lambda is undefined"
    yield model, object(), {"steps": 5}, "is not a torch optimizer"
    yield nn.Linear(2, 2), sgd([torch.zeros(1)]), {"steps": 5}, "the model has no SoRA adapter"
    faster = tiny(gate_lr_mult=3.0)
    yield faster, sgd(faster.parameters(), lr=0.1), {"steps": 5}, r"gate_lr_mult=3\.0 alone in it; use qpeft\.param_gr"
    frozen = tiny(inference_mode=True)
    yield frozen, sgd([torch.zeros(1)]), {"steps": 5}, "no SoRA gate is trained"


@pytest.mark.parametrize("case", range(8))
def test_attach_errors(case):
    model, optimiser, how, message = list(refusals())[case]
    with pytest.raises(ConfigError, match=message):
        attach(optimiser, model, **how)


def test_sharded_gates_raise():
    model = tiny()
    model.base_model.model[0].sora_gate._is_fsdp_managed_module = True
    with pytest.raises(TrainingError, match="SoRA gates are sharded by the optimizer wrapper; exclude"):
        attach(torch.optim.SGD(model.parameters(), lr=0.1), model, steps=5)


def test_schedule_that_cannot_be_simulated_raises():
    model = tiny(shrink_budget=1.0)
    optimiser = torch.optim.SGD(qpeft.param_groups(model, lr=0.1), lr=0.1)
    schedule = torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.ConstantLR(optimiser)])
    with pytest.raises(ConfigError, match="pass sparse_lambda instead"):
        attach(optimiser, model, steps=4, schedule=schedule)
