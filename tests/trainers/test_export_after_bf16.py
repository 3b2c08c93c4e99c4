"""Export directly after training in bf16: the Trainer leaves autocast around the model's forward."""

import pytest
import torch
from trl import SFTConfig, SFTTrainer

import qpeft
from trainers import QUIET, arguments

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("method", ["qpa", "attached"])
def test_export_after_the_trainer(llama, ids, adapters, tmp_path, method):
    from peft import IA3Config, get_peft_model
    from transformers import Trainer

    generator = {"chunk_size": 16, "hidden": (6, 5), "n_layers": 3}
    if method == "qpa":
        model = adapters.qpa(llama)
    else:
        model = qpeft.attach(
            get_peft_model(llama, IA3Config(task_type="CAUSAL_LM")), qpeft.QPAGeneratorConfig(**generator)
        )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(50, (8, 8))]
    args = arguments(tmp_path / "run", max_steps=2, bf16=True, per_device_train_batch_size=8, learning_rate=5e-5)
    Trainer(model, args, train_dataset=rows).train()
    assert "forward" in model.__dict__  # wrapped by accelerate
    report = qpeft.export(model, tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6
    assert "forward" in model.__dict__


def test_export_after_sft_trainer_with_its_defaults(tmp_path):
    """With prompts and completions, as on the page about trainers; bf16 is a default."""
    from datasets import Dataset

    import qpeft.demo

    rows = [{"prompt": f"Return the number {i}", "completion": f" as {i}."} for i in range(8)]
    trainer = SFTTrainer(
        str(qpeft.demo.base_path()),
        args=SFTConfig(str(tmp_path / "run"), **{**QUIET, "learning_rate": 1e-3, "max_steps": 2, "max_length": 64}),
        train_dataset=Dataset.from_list(rows),
        peft_config=qpeft.QPAConfig(r=4, budget=0.5, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    report = qpeft.export(trainer.model, tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6
