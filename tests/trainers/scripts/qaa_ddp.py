"""Run by torchrun in two processes: DDP around QAA, its circuits apart or shared."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from safetensors.torch import save_file
from tiny import base, batch, rows, trained
from torch.nn.parallel import DistributedDataParallel

import qpeft


def adapted(share):
    torch.manual_seed(dist.get_rank())  # the initial values of qpeft do not depend on it
    config = qpeft.QAAConfig(task_type="CAUSAL_LM", share_circuit=share)
    return get_peft_model(base(), config).train()


def train(model, data, steps=4):
    """The first step has no gradient for the angles, for V is 0; the gradients are those of the last."""
    inner = getattr(model, "module", model)
    optimiser = torch.optim.SGD(trained(inner).values(), lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**data).loss.backward()
        optimiser.step()
    return {name: p.grad.clone() for name, p in trained(inner).items()}


def main(out):
    dist.init_process_group("gloo")
    rank, everything = dist.get_rank(), rows(8)
    for share in (False, True):
        found = train(DistributedDataParallel(adapted(share)), batch(everything[4 * rank :][:4]))
        expected = train(adapted(share), batch(everything))
        tensors = {f"found.{name}": g for name, g in found.items()}
        tensors |= {f"expected.{name}": g for name, g in expected.items()}
        save_file(tensors, Path(out) / f"{share}.{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
