"""trl's SFTTrainer, unchanged: answer-only loss, its casts to bfloat16, resume, save and export."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import Trainer

import qpeft
import qpeft_lab.demo
from trainers import QUIET, arguments

trl = pytest.importorskip("trl")
pytestmark = [
    # trl on a default of its own: the same for a stock LoRA
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning"),
]

ROWS = [
    {"prompt": "what colour is the sky ?", "completion": " blue"},
    {"prompt": "what colour is the grass ?", "completion": " green is green"},
    {"prompt": "is the sea one ?", "completion": " the sea is one"},
    {"prompt": "one two", "completion": " three"},
]


@pytest.fixture
def sft(tokenizer, tmp_path):
    """An SFTTrainer over `model` with the rows."""

    def make(model, rows=ROWS, peft_config=None, folder="run", **changes):
        sizes = {"per_device_train_batch_size": len(rows), "max_steps": 1, "bf16": False}
        return trl.SFTTrainer(
            model,
            args=trl.SFTConfig(str(tmp_path / folder), **{**QUIET, **sizes, **changes}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state(model):
    return [p.detach().clone() for p in model.base_model.generators["default"].parameters()]


def are_equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


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
    if given_as == "wrapped":
        trainer = sft(wrap(llama, method), max_steps=8)
    else:
        trainer = sft(llama, peft_config=config_of(method), max_steps=8)
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


def test_resumed_run_equals_the_uninterrupted_run_and_loads(llama, method, wrap, sft, ids, adapters, tmp_path):
    def run(model, folder, **options):
        trainer = sft(model, folder=folder, max_steps=4, save_strategy="steps", save_steps=2, warmup_steps=1)
        trainer.train(**options)
        return trainer

    unbroken = run(wrap(copy.deepcopy(llama), method), "a")
    resumed = run(wrap(copy.deepcopy(llama), method), "b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert are_equal(state(unbroken.model), state(resumed.model))
    unbroken.save_model(str(tmp_path / "saved"))
    loaded = qpeft.load(llama, tmp_path / "saved")
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(unbroken.model.eval(), ids))


def cast(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def test_cast_parameters_continue_in_float32_from_their_rounded_values(llama, method, wrap, adapters, ids, tmp_path):
    base, plain = copy.deepcopy(llama), adapters.train(wrap(copy.deepcopy(llama), method), ids, steps=3)
    stepped = adapters.train(cast(wrap(copy.deepcopy(llama), method)), ids, steps=3)
    for ours, expected in zip(state(stepped), state(plain), strict=True):  # bfloat16 rounds by up to 4e-3
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    model = adapters.train(wrap(llama, method), ids, steps=2).train()
    model.save_pretrained(tmp_path)
    trained = state(model)
    cast(model)(input_ids=ids)
    assert are_equal(state(model), [p.to(torch.bfloat16).float() for p in trained])
    # as a Trainer resumes: its model was cast when it was built, and the checkpoint is read before any forward
    again = cast(wrap(base, method))
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert are_equal(state(again), trained)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["qpa", "attached", "sft"])
def test_export_directly_after_training_in_bf16(llama, adapters, tmp_path, method):
    """The trainers leave autocast around the model's forward; bf16 is a default of SFTTrainer."""
    if method == "sft":
        rows = [{"prompt": f"Return the number {i}", "completion": f" as {i}."} for i in range(8)]
        trainer = trl.SFTTrainer(
            str(qpeft_lab.demo.base_path()),
            args=trl.SFTConfig(str(tmp_path / "run"), **{**QUIET, "learning_rate": 1e-3, "max_steps": 2}),
            train_dataset=Dataset.from_list(rows),
            peft_config=qpeft.QPAConfig(r=4, budget=0.5, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    else:
        generator = qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(6, 5), n_layers=3)
        ia3 = IA3Config(task_type="CAUSAL_LM")
        model = adapters.qpa(llama) if method == "qpa" else qpeft.attach(get_peft_model(llama, ia3), generator)
        rows = [{"input_ids": row, "labels": row} for row in torch.randint(50, (8, 8))]
        args = arguments(tmp_path / "run", max_steps=2, bf16=True, per_device_train_batch_size=8, learning_rate=5e-5)
        trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    assert "forward" in trainer.model.__dict__  # wrapped by accelerate
    assert qpeft.export(trainer.model, tmp_path / "exported").max_logit_difference <= 1e-6
    assert "forward" in trainer.model.__dict__
