"""Run by torchrun in two processes: PyTorch's own DDP and FSDP1 around a generated adapter, without a trainer."""

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import METHODS, batch, check_refused, leave_together, moved, rows, trained
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from qpeft.errors import ConfigError

MICRO_BATCHES = 2


def mine(n):
    """This rank's share of n rows."""
    size = n // dist.get_world_size()
    return rows(n)[dist.get_rank() * size :][:size]


def gradients(method, **options):
    """Gradients under DDP of each rank's half of 8 rows, compared with one process with all 8."""
    alone, model = moved(method), moved(method)
    alone(**batch(rows(8))).loss.backward()
    replica = DistributedDataParallel(model, **options)
    replica(**batch(mine(8))).loss.backward()
    found = {f"found.{name}": p.grad for name, p in trained(model).items()}
    return {**found, **{f"expected.{name}": p.grad for name, p in trained(alone).items()}}


def train_accumulating(method, steps=3):
    """Logits after some steps with no_sync on all micro-batches but the last, and the trained parameters.

    Each rank has drawn its own start, if it is one of stock PEFT: DDP then takes that of rank 0.
    """
    model = moved(method, seed=dist.get_rank())
    replica = DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(trained(model).values(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        for i in range(MICRO_BATCHES):
            last = i == MICRO_BATCHES - 1
            with nullcontext() if last else replica.no_sync():
                replica(**batch(mine(8)[2 * i :][:2])).loss.backward()
        optimiser.step()
    with torch.no_grad():
        logits = model(**batch(rows(8))).logits
    return {"logits": logits, **{name: p.detach() for name, p in trained(model).items()}}


def check_checkpointing(method):
    """Not reentrant: the gradients of no checkpointing at all. Reentrant: refused."""
    plain, model = moved(method), moved(method)
    replicas = [DistributedDataParallel(m) for m in (plain, model)]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for replica in replicas:
        replica(**batch(mine(8)), use_cache=False).loss.backward()
    for name, p in trained(model).items():
        torch.testing.assert_close(p.grad, trained(plain)[name].grad)
    reentrant = moved(method)
    reentrant.enable_input_require_grads()
    reentrant.gradient_checkpointing_enable({"use_reentrant": True})
    replica = DistributedDataParallel(reentrant)
    check_refused(lambda: replica(**batch(mine(8)), use_cache=False).loss.backward(), RuntimeError, "use_reentrant")


def check_fsdp(method):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    first = FullyShardedDataParallel(
        moved(method), device_mesh=mesh, use_orig_params=True, device_id=torch.device("cpu")
    )
    check_refused(lambda: first(**batch(mine(8))), ConfigError, "shards the generator")


def main(out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for method in METHODS:
        results = {
            "plain": gradients(method),
            "unused": gradients(method, find_unused_parameters=True),
            "static": gradients(method, static_graph=True),
            "accumulated": train_accumulating(method),
        }
        for name, tensors in results.items():
            save_file(tensors, Path(out) / f"{method}.{name}.{dist.get_rank()}.safetensors")
        check_checkpointing(method)
        check_fsdp(method)
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
