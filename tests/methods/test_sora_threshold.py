"""The proximal step: formula, lambda of a budget, optimizers and schedules, skipped steps, Trainer,
errors.
"""

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from transformers import Trainer, TrainerCallback

import qpeft
from qpeft import SoRACallback
from qpeft.errors import ConfigError, QpeftWarning
from trainers import arguments

attach = SoRACallback.attach


def tiny(**settings):
    """One Linear with gates."""
    return get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), qpeft.SoRAConfig(r=5, target_modules=["0"], **settings)
    )


def gate_of(model):
    return model.base_model.generators["default"].gates


def test_soft_threshold_follows_the_step_of_the_optimizer_once():
    model = tiny(sparse_lambda=1.0)
    with torch.no_grad():
        gate_of(model).copy_(torch.tensor([0.5, -0.2, 0.05, -0.1, 0.0]))
    optimiser = torch.optim.SGD([gate_of(model)], lr=0.1)
    attach(optimiser, model)
    attach(optimiser, model)  # again, as after an interruption
    gate_of(model).grad = torch.tensor([1.0, 0.0, 0.0, 0.0, -2.0])
    optimiser.step()

    torch.testing.assert_close(gate_of(model).detach(), torch.tensor([0.3, -0.1, 0.0, 0.0, 0.1]))
    assert (gate_of(model) == 0).sum() == 2


def train(model, optimizer, step):
    """Twelve steps; returns how many gates are zero."""
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(12):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        step(lambda: model(inputs).square().sum().backward())
    return int((gate_of(model) == 0).sum())


def sgd(model):
    return torch.optim.SGD(qpeft.param_groups(model, lr=0.01))


def sharpness_aware(optimizer):
    """The two steps of SAM: up by the gradient, and with the gradient there from where it was."""

    def step(backward):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.add_(p.grad, alpha=1e-3)
        optimizer.zero_grad()
        backward()
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
        optimizer.step()

    return step


@pytest.mark.filterwarnings("error")
def test_gates_become_zero_under_the_inner_optimizer_of_sam():
    model = tiny(shrink_budget=5.0)
    inner = sgd(model)
    attach(inner, model, steps=12)
    assert train(model, inner, sharpness_aware(inner)) == 5


def test_optimizer_that_does_not_step_itself_is_named():
    model = tiny(shrink_budget=5.0)
    inner = sgd(model)
    attach(sgd(model), model, steps=12)  # as SAM's own, whose first_step and second_step are called
    with pytest.warns(QpeftWarning, match="does not step, so no gate will become zero") as warned:
        assert train(model, inner, sharpness_aware(inner)) == 0
    assert len(warned) == 1


def test_weights_that_undo_the_threshold_are_named():
    """As those of Lookahead."""
    model = tiny(shrink_budget=5.0)
    optimizer = sgd(model)
    slow = [p.detach().clone() for p in model.parameters()]

    def step(_):
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(slow, model.parameters(), strict=True):
                p.copy_(mean.lerp_(p, 0.5))

    attach(optimizer, model, steps=12)
    with pytest.warns(QpeftWarning, match="such as Lookahead, undoes the threshold") as warned:
        assert train(model, optimizer, step) == 0
    assert len(warned) == 1


def test_schedule_that_cannot_be_evaluated_in_advance_needs_sparse_lambda():
    def on(model):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(optimiser, model, steps=10, schedule=CosineAnnealingLR(optimiser, 10))
        return model.peft_config["default"].sora_lambda

    with pytest.raises(ConfigError, match="sparse_lambda"):
        on(tiny())
    assert on(tiny(sparse_lambda=0.5)) == 0.5


def test_lambda_under_accelerate():
    model = tiny(shrink_budget=0.1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = LambdaLR(optimiser, lambda step: 1 - step / 4)
    attach(
        *Accelerator(cpu=True).prepare(optimiser, model),
        steps=4,
        schedule=Accelerator(cpu=True).prepare(schedule),
    )

    assert model.peft_config["default"].sora_lambda == pytest.approx(0.1 / (0.05 * 2.5))


@pytest.mark.parametrize("fused", [False, True])
def test_step_skipped_by_the_gradient_scaler_does_not_shrink(fused):
    model = tiny(sparse_lambda=1.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0, fused=fused)
    attach(optimiser, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = gate_of(model).detach().clone()
    for overflow, shrinks in ((True, False), (False, True)):
        optimiser.zero_grad()
        loss = model(torch.linspace(-1, 1, 24).view(4, 6)).square().mean()
        scaler.scale(loss * (torch.inf if overflow else 1.0)).backward()
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(gate_of(model), nn.functional.softshrink(before, 0.1)) == shrinks
        assert torch.equal(gate_of(model), before) != shrinks


def test_two_active_adapters_have_separate_lambdas():
    model = tiny(shrink_budget=0.5)
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["0"], shrink_budget=0.25))
    model.base_model.set_adapter(["default", "other"])
    optimiser = torch.optim.SGD(qpeft.param_groups(model, lr=0.1), lr=0.1)
    attach(optimiser, model, steps=10)
    lambdas = {name: config.sora_lambda for name, config in model.peft_config.items()}

    assert lambdas == pytest.approx({"default": 0.5, "other": 0.25})


def test_gates_of_an_adapter_that_was_frozen_since_do_not_shrink():
    model = tiny(sparse_lambda=0.5)
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["0"], sparse_lambda=0.5))
    model.base_model.set_adapter(["default", "other"])
    optimiser = torch.optim.SGD(qpeft.param_groups(model, lr=0.1), lr=0.1)
    attach(optimiser, model, steps=10)
    model.set_adapter("other")
    gates = {name: held.gates for name, held in model.base_model.generators.items()}
    before = {name: each.detach().clone() for name, each in gates.items()}
    optimiser.step()
    assert torch.equal(gates["default"], before["default"])
    assert not torch.equal(gates["other"], before["other"])


class ScheduleFree(torch.optim.SGD):
    """As those of the package schedulefree, with weights of its own for evaluation."""

    def eval(self):
        pass


REFUSED = {  # (model, optimizer, arguments), and what the message names
    "weight decay": (
        lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.01),
        {},
        {"steps": 5},
        "weight_decay",
    ),
    "not in the optimizer": (
        lambda m: torch.optim.SGD([torch.zeros(1, requires_grad=True)]),
        {},
        {"steps": 5},
        "param_groups",
    ),
    "schedule-free": (
        lambda m: ScheduleFree(m.parameters(), lr=0.1),
        {},
        {"steps": 5},
        "of its own",
    ),
    "no steps": (lambda m: torch.optim.SGD(m.parameters(), lr=0.1), {}, {}, "steps"),
    "rate 0": (
        lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
        {},
        {"steps": 5},
        "zero over the whole schedule",
    ),
    "frozen": (
        lambda m: torch.optim.SGD([torch.zeros(1)]),
        {"inference_mode": True},
        {"steps": 5},
        "is_trainable",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attach_errors(case):
    optimiser, settings, how, named = REFUSED[case]
    model = tiny(**settings)
    with pytest.raises(ConfigError, match=named):
        attach(optimiser(model), model, **how)
    with pytest.raises(ConfigError, match="SoRAConfig"):
        attach(optimiser(model), nn.Linear(2, 2), steps=5)


def test_trainer_applies_the_threshold_once_per_step_and_a_second_run_computes_lambda_again(
    gpt2, tmp_path
):
    steps = 8
    rates = []

    class Listen(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            optimiser = kwargs["optimizer"].optimizer
            optimiser.register_step_post_hook(
                lambda *_: rates.append(optimiser.param_groups[0]["lr"])
            )

    tokens = torch.randint(50, (32, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    args = arguments(tmp_path, max_steps=steps, learning_rate=0.2, gradient_accumulation_steps=2)
    model = get_peft_model(gpt2, qpeft.SoRAConfig(r=8, task_type="CAUSAL_LM", shrink_budget=0.5))
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[SoRACallback(), Listen()])
    trainer.train()

    assert rates == pytest.approx([0.2 * (1 - step / steps) for step in range(steps)])

    config = trainer.model.peft_config["default"]
    assert config.sora_lambda == pytest.approx(0.5 / sum(rates))
    assert (gate_of(trainer.model) == 0).any()
    with pytest.warns(QpeftWarning, match="gates will not become zero"):  # removed at the end
        trainer.model.train()(input_ids=tokens[:1])

    trainer.args.max_steps = 2 * steps
    first = config.sora_lambda
    trainer.train()

    assert config.sora_lambda < first
