"""trl's SFTTrainer, unchanged: answer-only loss, its casts to bfloat16, resume, save."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import qpeft
from trainers import QUIET

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
    from datasets import Dataset

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


def generator_of(trainer):
    return trainer.model.base_model.generators["default"]


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


def test_loss_of_assistant_turns(llama, method, wrap, sft, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + ' ' }}{% else %}"
        "{% generation %}{{ m['content'] + ' <eos> ' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].strip()},
            ]
        }
        for row in ROWS
    ]
    expected = answer_loss(llama, tokenizer, ROWS)
    trainer = sft(wrap(llama, method), rows, assistant_only_loss=True)
    trainer.train()
    assert abs(losses(trainer)[0] - expected) < 1e-5


def test_bf16_training_keeps_the_generator_in_float32(llama, method, wrap, sft):
    trainer = sft(wrap(llama.bfloat16(), method), bf16=True, max_steps=6)
    trainer.train()
    assert {p.dtype for p in generator_of(trainer).parameters()} == {torch.float32}
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
    for p, q in zip(generator_of(unbroken).parameters(), generator_of(resumed).parameters(), strict=True):
        assert torch.equal(p, q)
    unbroken.save_model(str(tmp_path / "saved"))
    loaded = qpeft.load(llama, tmp_path / "saved")
    expected = adapters.logits(unbroken.model.eval(), ids)
    assert torch.equal(adapters.logits(loaded, ids), expected)


def cast(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def state(model):
    return [p.detach().clone() for p in model.base_model.generators["default"].parameters()]


@pytest.mark.parametrize("reader", ["forward", "move", "state_dict", "save"])
def test_cast_through_data_is_undone_exactly(llama, method, wrap, adapters, ids, reader, tmp_path):
    model = adapters.train(wrap(llama, method), ids, steps=2).train()
    before = state(model)
    cast(model)
    if reader == "forward":
        model(input_ids=ids)
    elif reader == "move":  # as accelerate does before it wraps the model in DDP
        model.to("cpu")
    elif reader == "state_dict":
        model.state_dict()
    else:
        model.save_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(state(model), before, strict=True))
    assert state(model)[0].dtype == torch.float32


def test_values_written_after_a_cast_are_not_rounded(llama, method, wrap, adapters, ids, tmp_path):
    """As a Trainer resumes: its model was cast when it was built, and the checkpoint is read before any forward."""
    base = copy.deepcopy(llama)
    trained = adapters.train(wrap(llama, method), ids, steps=2)
    trained.save_pretrained(tmp_path)
    again = wrap(base, method)
    cast(again)
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert all(torch.equal(p, q) for p, q in zip(state(again), state(trained), strict=True))


def test_optimizer_steps_after_a_cast_equal_those_without(llama, method, wrap, adapters, ids):
    plain = adapters.train(wrap(copy.deepcopy(llama), method), ids, steps=3)
    model = wrap(llama, method)
    cast(model)
    adapters.train(model, ids, steps=3)
    assert all(torch.equal(p, q) for p, q in zip(state(model), state(plain), strict=True))


def test_rounded_values_written_by_the_user_are_kept(llama, wrap, adapters, ids):
    model = wrap(llama, "qpa")
    parameter = next(model.base_model.generators["default"].parameters())
    written = torch.full_like(parameter, 0.3).bfloat16()
    parameter.data = written
    model(input_ids=ids)
    assert torch.equal(parameter.detach(), written.float())
