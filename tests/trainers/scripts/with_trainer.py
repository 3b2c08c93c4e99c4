"""A user's script with transformers.Trainer, for torchrun or one process alone: under DDP, or under FSDP2.

accelerate uses FSDP on accelerators only, so it is given the state that it has there.
"""

import sys
import warnings
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from tiny import METHODS, adapted, check_refused, leave_together, rows, trained
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

GLOBAL_BATCH = 8
ACCUMULATION = 2
FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def trainer_of(model, out, n_processes, **settings):
    arguments = TrainingArguments(
        **{
            "output_dir": str(out),
            "per_device_train_batch_size": GLOBAL_BATCH // ACCUMULATION // n_processes,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_steps": 4,
            "learning_rate": 0.02,
            "optim": "sgd",  # Adam would blow up the rounding of gradients near 0
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **settings,
        }
    )
    if "fsdp" in settings:
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return Trainer(model, arguments, train_dataset=rows(32))


def train(method, out, n_processes, **settings):
    trainer = trainer_of(adapted(method), Path(out) / f"run_{method}_{n_processes}", n_processes, **settings)
    trainer.train()
    trainer.save_model(str(Path(out) / method))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if "fsdp" in settings:
        assert isinstance(trainer.model, FSDPModule)
        assert any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return {**{name: p.detach().clone() for name, p in trained(trainer.model).items()}, "losses": torch.tensor(losses)}


def check_resume(method, out):
    """Under FSDP2 with AdamW: torch cannot load the state of an optimizer without any, such as plain SGD."""
    place = Path(out) / f"resumed_{method}"
    whole, trainer = (trainer_of(adapted(method), place, 2, optim="adamw_torch", **FSDP) for _ in range(2))
    whole.train()
    trainer.train(resume_from_checkpoint=str(place / "checkpoint-2"))
    for name, value in trained(trainer.model).items():
        assert torch.equal(value, trained(whole.model)[name]), name


def check_reentrant_is_refused(method, out):
    # with unused parameters looked for, as Trainer does by default, DDP itself refuses it
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = trainer_of(adapted(method), out, 2, ddp_find_unused_parameters=False, **options)
    check_refused(trainer.train, RuntimeError, "use_reentrant")


def main(out, *how):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in METHODS:
        found = train(method, out, n_processes=2, **(FSDP if how else {}))
        rank = torch.distributed.get_rank()
        save_file(found, Path(out) / f"{method}.{rank}.safetensors")
        if how:
            check_resume(method, out)
    if not how:
        check_reentrant_is_refused("qpa", out)
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
