"""Quantum-PEFT on real weights with an unchanged Trainer, at the learning rates of LoRA and with weight decay."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

import qpeft
from qpeft.demo import base_path
from qpeft.demo.corpus import numpy_docs
from trainers import arguments

pytestmark = pytest.mark.long

STEPS = 30
FRAMED = {"frame": "gradient", "share": "type"}


@pytest.fixture(scope="module")
def blocks():
    """48 blocks of 64 tokens of NumPy's documentation; the last 8 are for scoring."""
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    ids = tokenizer("\n".join(numpy_docs()[:60]), return_tensors="pt", verbose=False).input_ids[0][: 48 * 64]
    return [{"input_ids": block, "labels": block} for block in ids.view(48, 64)]


def loss_of(model, blocks):
    ids = torch.stack([block["input_ids"] for block in blocks])
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("settings", "lr", "fall"),
    [({}, 2e-4, 0.02), ({}, 2e-3, 0.4), (FRAMED, 2e-4, 0.6), (FRAMED, 2e-3, 1.3)],
    ids=["plain-2e-4", "plain-2e-3", "framed-2e-4", "framed-2e-3"],
)
def test_usual_learning_rates_of_lora_train_quantum_peft(blocks, tmp_path, settings, lr, fall):
    """More than it does with unfolded learning rates: 0.006, 0.07, 0.50, 1.18 nats."""
    base = AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32)
    train, held_out = blocks[:40], blocks[40:]
    before = loss_of(base, held_out)
    config = qpeft.QuantumPeftConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, config)
    if settings:
        qpeft.fit_frames(model, [{"input_ids": block["input_ids"][None]} for block in train])
    args = arguments(tmp_path, max_steps=STEPS, learning_rate=lr, weight_decay=0.1, per_device_train_batch_size=8)
    Trainer(model, args, train_dataset=train).train()
    assert before - loss_of(model, held_out) > fall
