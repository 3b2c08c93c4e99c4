"""A pool of compact adapters next to PEFT with the exported ones, on one base model: the time of a
first activation, a further one, and a batch of several adapters.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM

import qpeft
from qpeft_lab.demo import base_model
from timing import Results, Row, Task, measure

N_ADAPTERS = 4
N_TOKENS = 32  # of each row of a batch
ADAPTER = {
    "r": 1,
    "n_layers": 1,
    "share": "type",
    "bits": 16,
    "lambda_bits": 16,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
CLOCKS = {"processor time": process_time, "wall time": perf_counter}


def rows(quick: bool) -> Iterator[Row]:
    """Times by both clocks, measured in turn, on models that share their weights."""
    name = base_model("embedded" if quick else "smollm2")
    base = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for what, (ours, theirs) in tasks(base, Path(folder)).items():
            rounds = 2 if quick else 9 if "rows" in what else 60
            for clock_name, clock in CLOCKS.items():
                others = {"PEFT's hotswap": lambda theirs=theirs: theirs}
                yield from measure(f"{what}, {clock_name}", ours, others, 1e-4, rounds, clock)


def tasks(base: Any, folder: Path) -> dict[str, tuple[Task, Task]]:
    """What qpeft does, and what PEFT does instead with the exported adapters; those are written to
    `folder`.
    """
    weights = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}

    def another() -> Any:
        return copy.deepcopy(base, {**weights})

    ids = torch.randint(100, (N_ADAPTERS, N_TOKENS), generator=torch.Generator().manual_seed(0))
    users = folder / "users"
    stock = folder / "exported"
    names = write_adapters(another(), ids, users, stock)
    of_one = qpeft.AdapterPool(another(), users, capacity=1)
    of_all = qpeft.AdapterPool(another(), users, capacity=N_ADAPTERS)
    swapped = PeftModel.from_pretrained(another(), stock / names[0]).eval()

    def swap(name: str) -> None:
        hotswap_adapter(swapped, str(stock / name), "default")

    def each_in_turn(activate: Callable[[str], object]) -> Task:
        order = cycle(names)

        def task() -> Results:
            activate(next(order))
            return ()

        return task

    def mixed() -> Results:
        return (of_all.model(input_ids=ids, adapter_names=of_all.place(names)).logits,)

    def one_by_one() -> Results:
        logits = []
        for name, row in zip(names, ids, strict=True):
            swap(name)
            logits.append(swapped(input_ids=row[None]).logits)  # (1, T, vocabulary)
        return (torch.cat(logits),)

    return {
        "first activation": (each_in_turn(of_one.activate), each_in_turn(swap)),
        "activation in memory": (each_in_turn(of_all.activate), each_in_turn(swap)),
        f"{N_ADAPTERS} rows, each with its adapter": (mixed, one_by_one),
    }


def write_adapters(base: Any, ids: Tensor, users: Path, stock: Path) -> list[str]:
    """Compact adapters with random values in one frame file, and their exports; their names."""
    frames = users.with_name("frames.safetensors")
    model = get_peft_model(base, qpeft.QuantumPeftConfig(frame="gradient", **ADAPTER))
    with warnings.catch_warnings(action="ignore"), torch.enable_grad():
        qpeft.fit_frames(model, [{"input_ids": ids}], save_to=frames)
    names = [f"customer{number}" for number in range(N_ADAPTERS)]
    for name in names:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        qpeft.save(model, users / name)
        qpeft.export(model, stock / name)
    return names
