"""trl's SFTTrainer, unchanged: answer-only loss, its casts to bfloat16, export."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

import qpeft
import qpeft_lab.demo
from trainers import QUIET

trl = pytest.importorskip("trl")
# trl on a default of its own: the same for a stock LoRA
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")

ROWS = [
    {"prompt": "what colour is the sky ?", "completion": " blue"},
    {"prompt": "what colour is the grass ?", "completion": " green is green"},
    {"prompt": "is the sea one ?", "completion": " the sea is one"},
    {"prompt": "one two", "completion": " three"},
]


@pytest.fixture
def sft(tokenizer, tmp_path):
    """An SFTTrainer over `model` with the rows."""

    def make(model, peft_config=None, **changes):
        sizes = {"per_device_train_batch_size": len(ROWS), "bf16": False}
        return trl.SFTTrainer(
            model,
            args=trl.SFTConfig(str(tmp_path / "run"), **{**QUIET, **sizes, **changes}),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state(model):
    return [p.detach().clone() for p in model.base_model.generators["default"].parameters()]


def answer_loss(model, tokenizer, rows):
    """Mean of -log p over all tokens of answers, end tokens included, one row at a time."""
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        predicted = logits[len(prompt) - 1 : -1]
        total += cross_entropy(predicted, torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    return total / count


@pytest.mark.parametrize("given_as", ["wrapped", "peft_config"])
def test_logged_loss_is_the_loss_of_the_answers(llama, method, given_as, wrap, config_of, sft, tokenizer):
    expected = answer_loss(llama, tokenizer, ROWS)
    given = (wrap(llama, method), None) if given_as == "wrapped" else (llama, config_of(method))
    trainer = sft(*given, max_steps=8)
    trainer.train()
    found = losses(trainer)
    assert abs(found[0] - expected) < 1e-5
    assert found[-1] < found[0]
    assert abs(answer_loss(trainer.model.eval(), tokenizer, ROWS) - expected) > 1e-3


def test_bf16_training_keeps_the_generator_in_float32(llama, method, wrap, sft):
    trainer = sft(wrap(llama.bfloat16(), method), bf16=True, max_steps=6)
    trainer.train()
    assert {p.dtype for p in state(trainer.model)} == {torch.float32}
    assert losses(trainer)[-1] < losses(trainer)[0]
    layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.dtype == torch.float32  # as PEFT places adapters on a bfloat16 base


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_export_directly_after_training_in_bf16(tmp_path):
    """The trainers leave autocast around the model's forward; bf16 is a default of SFTTrainer."""
    rows = [{"prompt": f"Return the number {i}", "completion": f" as {i}."} for i in range(8)]
    trainer = trl.SFTTrainer(
        str(qpeft_lab.demo.base_path()),
        args=trl.SFTConfig(str(tmp_path / "run"), **{**QUIET, "learning_rate": 1e-3, "max_steps": 2}),
        train_dataset=Dataset.from_list(rows),
        peft_config=qpeft.QPAConfig(r=4, budget=0.5, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    assert "forward" in trainer.model.__dict__  # wrapped by accelerate
    assert qpeft.export(trainer.model, tmp_path / "exported").max_logit_difference <= 1e-6
    assert "forward" in trainer.model.__dict__
