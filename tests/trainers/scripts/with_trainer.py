"""A user's script, for torchrun or one process alone: transformers.Trainer under DDP or FSDP2, and DDP alone.

accelerate uses FSDP on accelerators only, so it is given the state that it has there.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from tiny import GENERATED, adapted, batch, moved, rows, trained
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from qpeft.errors import ConfigError
from trainers import arguments

GLOBAL_BATCH = 8
ACCUMULATION = 2
FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def trainer_of(model, out, n_processes, **settings):
    given = {
        "per_device_train_batch_size": GLOBAL_BATCH // ACCUMULATION // n_processes,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": 4,
        "learning_rate": 0.02,
        "optim": "sgd",  # Adam would blow up the rounding of gradients near 0
        "save_strategy": "steps",
        "save_steps": 2,
    }
    args = arguments(out, **{**given, **settings})
    if "fsdp" in settings:
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return Trainer(model, args, train_dataset=rows(32))


def train(method, out, n_processes, **settings):
    trainer = trainer_of(adapted(method), Path(out) / f"run_{method}_{n_processes}", n_processes, **settings)
    trainer.train()
    trainer.save_model(str(Path(out) / method))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if "fsdp" in settings:
        assert isinstance(trainer.model, FSDPModule)
        assert any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return {**{name: p.detach().clone() for name, p in trained(trainer.model).items()}, "losses": torch.tensor(losses)}


def gradients(method, **options):
    """Under DDP of each rank's half of 8 rows, and of one process with all of them."""
    alone, model, rank = moved(method), moved(method), torch.distributed.get_rank()
    alone(**batch(rows(8))).loss.backward()
    replica = DistributedDataParallel(model, **options)
    replica(**batch(rows(8)[4 * rank :][:4])).loss.backward()
    found = {f"found.{name}": p.grad for name, p in trained(model).items()}
    return {**found, **{f"expected.{name}": p.grad for name, p in trained(alone).items()}}


def check_fsdp1_is_refused(method):
    mesh = init_device_mesh("cpu", (2,))
    model = FullyShardedDataParallel(
        moved(method), device_mesh=mesh, use_orig_params=True, device_id=torch.device("cpu")
    )
    with pytest.raises(ConfigError, match="shards the generator"):
        model(**batch(rows(8)))


def check_resume(method, out):
    """Under FSDP2 with AdamW: torch cannot load the state of an optimizer without any, such as plain SGD."""
    place = Path(out) / f"resumed_{method}"
    whole, trainer = (trainer_of(adapted(method), place, 2, optim="adamw_torch", **FSDP) for _ in range(2))
    whole.train()
    trainer.train(resume_from_checkpoint=str(place / "checkpoint-2"))
    for name, value in trained(trainer.model).items():
        assert torch.equal(value, trained(whole.model)[name]), name


def main(out, *how):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in GENERATED:
        found = train(method, out, n_processes=2, **(FSDP if how else {}))
        rank = torch.distributed.get_rank()
        save_file(found, Path(out) / f"{method}.{rank}.safetensors")
        if how:
            check_resume(method, out)
            continue
        check_fsdp1_is_refused(method)
        for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
            save_file(gradients(method, **options), Path(out) / f"{method}.{'-'.join(options)}.{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
