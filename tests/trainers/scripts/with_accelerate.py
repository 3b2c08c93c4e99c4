"""A user's own loop with accelerate, for `accelerate launch` or one process alone."""

import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny import METHODS, adapted, rows, trained
from torch.utils.data import DataLoader

GLOBAL_BATCH = 8
ACCUMULATION = 2


def train(method, out, n_processes):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    model = adapted(method)
    loader = DataLoader(rows(32), batch_size=GLOBAL_BATCH // ACCUMULATION // n_processes)
    optimiser = torch.optim.SGD(trained(model).values(), lr=0.005)
    replica, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    norms = []
    for batch in loader:
        with accelerator.accumulate(replica):
            accelerator.backward(replica(**batch).loss)
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(replica.parameters(), 1.0).item())
            optimiser.step()
            optimiser.zero_grad()
    if accelerator.is_main_process:
        accelerator.unwrap_model(replica).save_pretrained(Path(out) / method)
    accelerator.wait_for_everyone()
    return {**{name: p.detach() for name, p in trained(model).items()}, "norms": torch.tensor(norms)}


def main(out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in METHODS:
        found = train(method, out, n_processes=2)
        assert torch.distributed.get_world_size() == 2
        save_file(found, Path(out) / f"{method}.{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
