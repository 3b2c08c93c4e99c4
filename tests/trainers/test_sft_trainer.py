"""trl's SFTTrainer, unchanged: falling losses, its casts to bfloat16, export."""

import pytest
import torch
from datasets import Dataset

import qpeft
import qpeft_lab.demo
from trainers import QUIET

trl = pytest.importorskip("trl")
# trl on a default of its own: the same for a stock LoRA
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing.* is deprecated:FutureWarning"
)

ROWS = [
    {"prompt": "what colour is the sky ?", "completion": " blue"},
    {"prompt": "what colour is the grass ?", "completion": " green is green"},
    {"prompt": "is the sea one ?", "completion": " the sea is one"},
    {"prompt": "one two", "completion": " three"},
]


@pytest.mark.parametrize("given_as", ["wrapped", "peft_config"])
@pytest.mark.parametrize("bf16", [False, True])
def test_training_keeps_the_generator_in_float32(
    llama, variant, given_as, bf16, tokenizer, tmp_path
):
    llama = llama.bfloat16() if bf16 else llama
    model, config = (
        (variant.adapt(llama), None) if given_as == "wrapped" else (llama, variant.make_config())
    )
    sizes = {"per_device_train_batch_size": len(ROWS), "bf16": bf16, "max_steps": 8}
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(str(tmp_path / "run"), **{**QUIET, **sizes}),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        peft_config=config,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses[-1] < losses[0]

    tuner = trainer.model.base_model
    assert {p.dtype for p in tuner.generators["default"].parameters()} == {torch.float32}

    layer = tuner.model.model.layers[0].self_attn.q_proj
    # as PEFT places adapters on a bfloat16 base
    assert layer.lora_A["default"].weight.dtype == torch.float32


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
def test_export_directly_after_training_in_bf16(tmp_path):
    """The trainers leave autocast around the model's forward; bf16 is a default of SFTTrainer."""
    rows = [{"prompt": f"Return the number {i}", "completion": f" as {i}."} for i in range(8)]
    trainer = trl.SFTTrainer(
        str(qpeft_lab.demo.base_path()),
        args=trl.SFTConfig(
            str(tmp_path / "run"), **{**QUIET, "learning_rate": 1e-3, "max_steps": 2}
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=qpeft.QPAConfig(
            r=4, budget=0.5, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()

    assert "forward" in trainer.model.__dict__  # wrapped by accelerate
    assert qpeft.export(trainer.model, tmp_path / "exported").max_logit_difference <= 1e-6
    assert "forward" in trainer.model.__dict__
