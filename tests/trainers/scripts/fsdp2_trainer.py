"""Run by torchrun in two processes: FSDP2 of `Trainer` and accelerate, or run alone in one process.

accelerate uses FSDP on accelerators only, so it is given the state that it has there.
"""

import sys
import warnings
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from tiny import adapted, rows, trained
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

METHODS = ("qpa", "quantum_peft", "attached")
GLOBAL_BATCH = 8
ACCUMULATION = 2
FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def trainer_of(method, out, n_processes, optim="sgd"):
    arguments = TrainingArguments(
        output_dir=str(Path(out) / f"run_{method}_{n_processes}"),
        per_device_train_batch_size=GLOBAL_BATCH // ACCUMULATION // n_processes,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=4,
        learning_rate=0.02,
        optim=optim,
        logging_steps=1,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **(FSDP if n_processes > 1 else {}),
    )
    if n_processes > 1:
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return Trainer(adapted(method), arguments, train_dataset=rows(32))


def train(method, out, n_processes):
    trainer = trainer_of(method, out, n_processes)
    trainer.train()
    trainer.save_model(str(Path(out) / method))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if n_processes > 1:
        assert isinstance(trainer.model, FSDPModule)
        assert any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return {**{name: p.detach().clone() for name, p in trained(trainer.model).items()}, "losses": torch.tensor(losses)}


def check_resume(method, out):
    """With AdamW: torch cannot load the state of an optimizer without any, such as plain SGD."""
    whole, trainer = (trainer_of(method, out, 2, "adamw_torch") for _ in range(2))
    whole.train()
    trainer.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for name, value in trained(trainer.model).items():
        assert torch.equal(value, trained(whole.model)[name]), name


def main(out, *methods):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in methods or METHODS:
        found = train(method, out, n_processes=2)
        check_resume(method, out)
        save_file(found, Path(out) / f"{method}.{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
