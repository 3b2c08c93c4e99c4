"""Run by torchrun in two processes: PyTorch's FSDP2 around each kind of adapter, against one process."""

import sys
import warnings
from pathlib import Path

import peft
import torch
import torch.distributed as dist
from peft import get_peft_model
from safetensors.torch import save_file
from tiny import base, batch, check_refused, moved, rows, trained
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import qpeft
from qpeft.errors import ConfigError

GENERATED = ("qpa", "quantum_peft", "attached")
TUNERS = {
    "qpa_with_head": lambda: qpeft.QPAConfig(
        hidden=(6, 5), chunk_size=16, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    ),
    "qaa": lambda: qpeft.QAAConfig(task_type="CAUSAL_LM"),
    "sora": lambda: qpeft.SoRAConfig(r=3, target_modules="all-linear", shrink_budget=0.1, task_type="CAUSAL_LM"),
    "bottleneck": lambda: qpeft.BottleneckConfig(bottleneck_size=4, task_type="CAUSAL_LM"),
    "lora": lambda: peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
}


def adapted(method):
    if method in GENERATED:
        return moved(method)
    torch.manual_seed(0)
    return get_peft_model(base(), TUNERS[method]()).train()


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


def run(method, out):
    rank, data = dist.get_rank(), rows(8)
    alone, model = adapted(method), shard(adapted(method))
    expected = train(alone, batch(data))
    losses = train(model, batch(data[4 * rank :][:4]))
    dist.all_reduce(losses)
    assert all(isinstance(p, DTensor) for p in model.get_base_model().model.layers.parameters())
    found = {f"found.{name}": value for name, value in whole(model).items()} | {"found.losses": losses / 2}
    found |= {f"expected.{name}": value for name, value in whole(alone).items()} | {"expected.losses": expected}
    save_file(found, out / f"{method}.{rank}.safetensors")
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(out / method, state_dict=state)
        if method in GENERATED or method == "sora":
            model.save_pretrained(out / f"{method}_directly")
            qpeft.save(model, out / f"{method}_by_save")
            qpeft.export(model, out / f"{method}_exported")
        else:
            check_refused(lambda: qpeft.save(model, out / "refused"), ConfigError, "FSDP2 shards trained parameters")
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


def main(out, *methods):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for method in methods or (*GENERATED, *TUNERS):
        run(method, Path(out))
    check_checkpointing()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
