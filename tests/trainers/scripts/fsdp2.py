"""Run by torchrun in two processes: PyTorch's FSDP2 around each kind of adapter, against one process."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import GENERATED, adapted, batch, moved, rows, trained
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import qpeft
from qpeft.errors import ConfigError

HEAD = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
CHANGES = {"qpa with a network": HEAD, "sora": {"shrink_budget": 0.1}}
VARIANTS = (*GENERATED, "qpa with a network", "qaa", "sora", "bottleneck")


def prepared(variant):
    return moved(variant) if variant in GENERATED else adapted(variant, **CHANGES.get(variant, {}))


def shard(model):
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train(model, data, steps=4):
    """Losses of SGD, whose steps show errors of a gradient's size, which Adam would hide."""
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.005)
    threshold = qpeft.SoRACallback.attach(optimizer, model, steps=steps) if has_gates(model) else None
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**data).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if threshold:
        threshold.remove()
    return torch.stack(losses)


def has_gates(model):
    return any(name.endswith(".gates") for name, _ in model.named_parameters())


def whole(model):
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for n, p in trained(model).items()}


def run(variant, out):
    rank, data = dist.get_rank(), rows(8)
    alone, model = prepared(variant), shard(prepared(variant))
    expected = train(alone, batch(data))
    losses = train(model, batch(data[4 * rank :][:4]))
    dist.all_reduce(losses)
    assert all(isinstance(p, DTensor) for p in model.get_base_model().model.layers.parameters())
    found = {f"found.{name}": value for name, value in whole(model).items()} | {"found.losses": losses / 2}
    found |= {f"expected.{name}": value for name, value in whole(alone).items()} | {"expected.losses": expected}
    save_file(found, out / f"{variant}.{rank}.safetensors")
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(out / variant, state_dict=state)
        if variant in GENERATED or variant == "sora":
            model.save_pretrained(out / f"{variant}_directly")
            qpeft.save(model, out / f"{variant}_by_save")
            qpeft.export(model, out / f"{variant}_exported")
        else:
            with pytest.raises(ConfigError, match="FSDP2 shards trained parameters"):
                qpeft.save(model, out / "refused")
    dist.barrier()


def check_checkpointing():
    """Both modes give the gradients of no checkpointing; the reentrant one runs a backward pass for each block."""
    plain = shard(moved("qpa"))
    plain(**batch(rows(8)), use_cache=False).loss.backward()
    for reentrant in (False, True):
        model = moved("qpa")
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        shard(model)(**batch(rows(8)), use_cache=False).loss.backward()
        for name, p in trained(model).items():
            torch.testing.assert_close(p.grad, trained(plain)[name].grad)


def main(out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for variant in VARIANTS:
        run(variant, Path(out))
    check_checkpointing()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
