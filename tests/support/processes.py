"""Run by torchrun in two processes: each kind of adapter under DDP or FSDP2, alone or in
transformers.Trainer.

python -m torch.distributed.run --standalone --nproc_per_node 2 processes.py
{ddp,fsdp2,trainer_fsdp2} OUT

What it saves is compared with one process; it also checks what is refused, activation checkpointing
and resuming.
"""

import sys
import warnings
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from variants import VARIANTS, move

import qpeft
from qpeft.core.generator_holder import holder_of
from qpeft.errors import ConfigError
from trainers import arguments

GENERATED = ("qpa", "quantum_peft", "attached to ia3")
TUNERS = ("qpa with a network", "qaa", "sora", "bottleneck")
HEAD = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
CHANGES = {"qpa with a network": HEAD, "sora": {"shrink_budget": 0.1}}
GLOBAL_BATCH = 8
ACCUMULATION = 2
FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def base():
    torch.manual_seed(0)
    return tiny_models.llama()


def adapted(variant, **changes):
    return VARIANTS[variant].adapt(base(), **changes).train()


def moved(variant):
    """An adapter that has left its start, where some gradients are 0, by little: large steps blow
    up rounding.
    """
    return move(adapted(variant), spread=0.005).train()


def rows(n):
    tokens = torch.randint(50, (n, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": t, "labels": t, "attention_mask": torch.ones_like(t)} for t in tokens]


def batch(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# -- FSDP2 alone


def prepared(variant):
    return moved(variant) if variant in GENERATED else adapted(variant, **CHANGES.get(variant, {}))


def shard(model, **options):
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def train(model, data, steps=4):
    """Losses of SGD, whose steps show errors of a gradient's size, which Adam would hide."""
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.005)
    threshold = (
        qpeft.SoRACallback.attach(optimizer, model, steps=steps) if has_gates(model) else None
    )
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
    return {
        n: (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for n, p in trained(model).items()
    }


def run_fsdp2(variant, out):
    rank = dist.get_rank()
    data = rows(8)
    alone = prepared(variant)
    model = shard(prepared(variant))
    expected = train(alone, batch(data))
    losses = train(model, batch(data[4 * rank :][:4]))
    dist.all_reduce(losses)

    assert all(isinstance(p, DTensor) for p in model.get_base_model().model.layers.parameters())

    found = {f"found.{name}": value for name, value in whole(model).items()} | {
        "found.losses": losses / 2
    }
    found |= {f"expected.{name}": value for name, value in whole(alone).items()} | {
        "expected.losses": expected
    }
    save_file(found, out / f"{variant}.{rank}.safetensors")
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
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
    """Both modes give the gradients of no checkpointing; the reentrant one runs a backward pass for
    each block.
    """
    plain = shard(moved("qpa"))
    plain(**batch(rows(8)), use_cache=False).loss.backward()
    for reentrant in (False, True):
        model = moved("qpa")
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        shard(model)(**batch(rows(8)), use_cache=False).loss.backward()
        for name, p in trained(model).items():
            torch.testing.assert_close(p.grad, trained(plain)[name].grad)


def check_two_trainings(variant):
    """Each process trains an adapter of its own, on a mesh of its own, in one launch."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("run", "part"))["part"]
    data = batch(rows(8)[4 * rank :][:4])
    alone, model = (move(moved(variant), spread=0.1 * (1 + rank)).train() for _ in range(2))
    losses = train(shard(model, mesh=mesh), data)
    torch.testing.assert_close(losses, train(alone, data))
    for name, p in whole(model).items():
        torch.testing.assert_close(p, whole(alone)[name])


def check_divisor(variant):
    """A sum over processes in place of the mean, for losses that are divided by all tokens."""
    rank = dist.get_rank()
    alone, model = moved(variant), shard(moved(variant))
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)
    model(**batch(rows(8)[4 * rank :][:4])).loss.backward()
    (2 * alone(**batch(rows(8))).loss).backward()
    for name, p in trained(model).items():
        torch.testing.assert_close(p.grad, trained(alone)[name].grad, atol=1e-6, rtol=1e-5)


def check_root_alone(variant):
    """Sharded as one whole: in the forward pass its parameters are not sharded any more."""
    rank = dist.get_rank()
    alone, model = moved(variant), moved(variant)
    fully_shard(model.get_base_model())
    model(**batch(rows(8)[4 * rank :][:4])).loss.backward()
    alone(**batch(rows(8))).loss.backward()
    for name, p in trained(model).items():
        torch.testing.assert_close(p.grad, trained(alone)[name].grad, atol=1e-6, rtol=1e-5)


def check_frames():
    """Those of the gradient on each process's own batches are the frames of all batches."""
    rank = dist.get_rank()
    halves = [batch(rows(8)[4 * part :][:4]) for part in (0, 1)]
    alone, model = (adapted("quantum_peft", frame="gradient") for _ in range(2))
    qpeft.fit_frames(alone, halves)
    qpeft.fit_frames(shard(model), halves[rank : rank + 1])
    found, expected = (
        torch.cat([b.flatten() for b in holder_of(each).buffers() if b.is_floating_point()])
        for each in (model, alone)
    )
    others = [torch.empty_like(found) for _ in range(2)]
    dist.all_gather(others, found)
    assert torch.equal(*others)
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-4, rtol=1e-4)  # of one sign


def check_buffers_in_ddp():
    """Initial values and frames that each process drew or fitted itself become those of the first,
    also where DDP broadcasts no buffers; its parameters are equal without this.
    """
    rank = dist.get_rank()
    half = batch(rows(8)[4 * rank :][:4])

    def attached():
        base_of_all = base()
        torch.manual_seed(rank)
        host = get_peft_model(base_of_all, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        return qpeft.attach(host, qpeft.QPAGeneratorConfig(budget=0.9))

    def fitted():
        model = adapted("quantum_peft", frame="gradient")
        qpeft.fit_frames(model, [half])
        return model

    for make in (attached, fitted):
        model = make().train()
        model(**half)  # before there is DDP
        replica = DistributedDataParallel(model, broadcast_buffers=False)
        if rank == 0:
            with torch.no_grad():
                replica(**half)  # one process may evaluate alone
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            replica(**half).loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = model.eval()(**batch(rows(2))).logits
        both = [torch.empty_like(logits) for _ in range(2)]
        dist.all_gather(both, logits)
        assert torch.equal(*both)
        state = get_peft_model_state_dict(model)
        set_peft_model_state_dict(model, state)  # its fingerprint is the first one's, too


# -- Trainer, and DDP alone


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


def train_with_trainer(method, out, n_processes, **settings):
    trainer = trainer_of(
        adapted(method), Path(out) / f"run_{method}_{n_processes}", n_processes, **settings
    )
    trainer.train()
    trainer.save_model(str(Path(out) / method))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if "fsdp" in settings:
        assert isinstance(trainer.model, FSDPModule)
        assert any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return {
        **{name: p.detach().clone() for name, p in trained(trainer.model).items()},
        "losses": torch.tensor(losses),
    }


def gradients(method, **options):
    """Under DDP of each rank's half of 8 rows, and of one process with all of them."""
    alone = moved(method)
    model = moved(method)
    rank = dist.get_rank()
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
    """Under FSDP2 with AdamW: torch cannot load the state of an optimizer without any, such as
    plain SGD.
    """
    place = Path(out) / f"resumed_{method}"
    whole, trainer = (
        trainer_of(adapted(method), place, 2, optim="adamw_torch", **FSDP) for _ in range(2)
    )
    whole.train()
    trainer.train(resume_from_checkpoint=str(place / "checkpoint-2"))
    for name, value in trained(trainer.model).items():
        assert torch.equal(value, trained(whole.model)[name]), name


def run_trainer(variant, out, **settings):
    found = train_with_trainer(variant, out, n_processes=2, **settings)
    save_file(found, out / f"{variant}.{dist.get_rank()}.safetensors")


def run_ddp(variant, out):
    run_trainer(variant, out)
    check_fsdp1_is_refused(variant)
    for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        save_file(
            gradients(variant, **options),
            out / f"{variant}.{'-'.join(options)}.{dist.get_rank()}.safetensors",
        )


def main(how, out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for variant in (*GENERATED, *TUNERS) if how == "fsdp2" else GENERATED:
        if how == "fsdp2":
            run_fsdp2(variant, Path(out))
            if variant in GENERATED[:2]:
                check_two_trainings(variant)
                check_divisor(variant)
                check_root_alone(variant)
        elif how == "ddp":
            run_ddp(variant, Path(out))
        else:
            run_trainer(variant, Path(out), **FSDP)
            check_resume(variant, out)
    if how == "fsdp2":
        check_checkpointing()
        check_frames()
    if how == "ddp":
        check_buffers_in_ddp()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
