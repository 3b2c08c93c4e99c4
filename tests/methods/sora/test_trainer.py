"""SoRA under an unchanged Trainer: shrinking at each real step, zeros, resume to the bit, refusals."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback

import qpeft
from qpeft.errors import ConfigError
from trainers import arguments as quiet_arguments

STEPS = 8


@pytest.fixture
def make(gpt2, tmp_path):
    """A Trainer over the same random GPT-2 each time, with accumulation 2 and 8 optimiser steps."""
    start = copy.deepcopy(gpt2)
    tokens = torch.randint(50, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]

    def trainer(folder="run", callbacks=None, config=None, optimizers=(None, None), **arguments):
        settings = {"r": 8, "task_type": "CAUSAL_LM", "shrink_budget": 0.5, **(config or {})}
        model = get_peft_model(copy.deepcopy(start), qpeft.SoRAConfig(**settings))
        return Trainer(
            model=model,
            args=quiet_arguments(
                tmp_path / folder,
                **{"max_steps": STEPS, "learning_rate": 0.2, "gradient_accumulation_steps": 2, **arguments},
                save_strategy="steps",
                save_steps=4,
            ),
            train_dataset=data,
            callbacks=[qpeft.SoRACallback()] if callbacks is None else callbacks,
            optimizers=optimizers(model) if callable(optimizers) else optimizers,
        )

    return trainer


def gates(trainer):
    return torch.stack([gate.detach() for _, _, gate in trainer.model.base_model.gates()])


def test_threshold_is_applied_once_per_step(make):
    trainer, rates = make(), []

    class Listen(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            optimiser = kwargs["optimizer"].optimizer
            optimiser.register_step_post_hook(lambda *_: rates.append(optimiser.param_groups[0]["lr"]))

    trainer.add_callback(Listen())
    trainer.train()
    assert rates == pytest.approx([0.2 * (1 - step / STEPS) for step in range(STEPS)])
    config = trainer.model.peft_config["default"]
    assert config.sora_lambda == pytest.approx(0.5 / sum(rates))
    assert (gates(trainer) == 0).any()
    assert not trainer.model.base_model.shrinks  # removed at the end


def test_second_run_computes_lambda_again(make):
    trainer = make()
    trainer.train()
    first = trainer.model.peft_config["default"].sora_lambda
    trainer.args.max_steps = 2 * STEPS
    trainer.train()
    assert trainer.model.peft_config["default"].sora_lambda < first


def test_weight_decay_on_gates_raises_without_parameter_groups(make):
    with pytest.raises(ConfigError, match="weight_decay"):
        make(weight_decay=0.01).train()

    def own_groups(model):
        return torch.optim.AdamW(qpeft.param_groups(model, lr=0.2, weight_decay=0.01)), None

    trainer = make(optimizers=own_groups)
    trainer.train()
    assert (gates(trainer) == 0).any()
