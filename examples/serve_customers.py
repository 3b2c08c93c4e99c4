"""Serve the customers of docs/small_adapters.md from one pool: several in a batch, one replaced and
restored; and the times, next to those of PEFT's `hotswap_adapter` with the exported adapters.

    python examples/serve_customers.py serve-run      # after `make serve`, which trains the adapters

The folder has a run for each customer, `replacement` (a later run of ana's) and the frame file.
Answers and times are printed as JSON.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft_lab import revisions
from qpeft_lab.demo import base_model

CAPACITY = 3  # adapters in memory, and in a batch
N_TOKENS = 32  # of an answer
REPLACEMENT = "replacement"
PROMPTS = [
    "name: The Blue Spice, type: pub, food: Thai, near: Burger King\n",
    "Once upon a time",
    "Tom has 3 boxes with 12 pencils each. How many pencils does he have?\n",
    "Returns the",
]
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


class Customers(NamedTuple):
    """One model that serves all of them."""

    pool: qpeft.AdapterPool
    tokenizer: Any

    def answers(self, prompt: str, names: list[str]) -> list[str]:
        """What the adapters of these customers continue the prompt with, in batches."""
        texts: list[str] = []
        for start in range(0, len(names), CAPACITY):
            batch = names[start : start + CAPACITY]
            inputs = self.tokenizer([prompt] * len(batch), return_tensors="pt")
            generated = self.pool.model.generate(
                **inputs,
                adapter_names=self.pool.place(batch),
                max_new_tokens=N_TOKENS,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            new = generated[:, inputs["input_ids"].shape[1] :]  # (B, N_TOKENS) or fewer
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts


def collect(runs: Path, users: Path) -> list[str]:
    """Copy the compact adapter of each run to a folder of its customer; the customers' names."""
    names = sorted(run.parent.name for run in runs.glob("*/result.json"))
    names.remove(REPLACEMENT)
    for name in names:
        shutil.copytree(runs / name / "adapter", users / name, dirs_exist_ok=True)
    return names


def replace_and_restore(customers: Customers, ana: Path, new: Path) -> dict[str, list[str]]:
    """The answers of ana's adapter, of the one that replaces it, and after the rollback."""
    earlier = revisions.revision(ana)
    revisions.keep(ana, earlier)
    before = customers.answers(PROMPTS[0], [ana.name])
    shutil.copytree(new, ana, dirs_exist_ok=True)  # the pool reads it at the next request
    replaced = customers.answers(PROMPTS[0], [ana.name])
    revisions.restore(ana, earlier)  # `qpeft rollback users/ana --to DIGEST`
    restored = customers.answers(PROMPTS[0], [ana.name])
    return {"before": before, "replaced": replaced, "restored": restored}


# -- times


class Comparison(NamedTuple):
    """What a pool does, and what PEFT does instead with the exported adapters."""

    pool: Callable[[], object]
    hotswap: Callable[[], object]
    rounds: int

    def milliseconds(self) -> dict[str, dict[str, list[float]]]:
        """By each clock the median, least and most of both. The two alternate; each timed call
        follows an untimed one, which fills the caches. The first round is not counted, because it
        finds the adapters of what ran before in memory.
        """
        tasks = {"pool": self.pool, "hotswap": self.hotswap}
        times: dict[str, dict[str, list[float]]] = {
            clock: {name: [] for name in tasks} for clock in CLOCKS
        }
        for _ in range(1 + self.rounds):
            for name, task in tasks.items():
                task()
                begin = {clock: read() for clock, read in CLOCKS.items()}
                task()
                for clock, read in CLOCKS.items():
                    times[clock][name].append(1e3 * (read() - begin[clock]))
        return {
            clock: {
                name: [statistics.median(values[1:]), min(values[1:]), max(values[1:])]
                for name, values in of_tasks.items()
            }
            for clock, of_tasks in times.items()
        }


@torch.no_grad()
def comparisons(customers: Customers, stock_model: Any, runs: Path, names: list[str]) -> dict:
    """`stock_model` has an exported adapter, in whose place others are loaded.

    Raises AssertionError if the logits of a batch differ.
    """
    pool = customers.pool
    few = names[:CAPACITY]
    ids = torch.randint(100, (len(few), N_TOKENS), generator=torch.Generator().manual_seed(0))

    def in_turn(activate: Callable[[str], object], some: list[str]) -> Callable[[], object]:
        order = cycle(some)
        return lambda: activate(next(order))

    def swap(name: str) -> None:
        hotswap_adapter(stock_model, str(runs / name / "exported"), "default")

    def mixed() -> Tensor:
        return pool.model(input_ids=ids, adapter_names=pool.place(few)).logits

    def one_by_one() -> Tensor:
        logits = []
        for name, row in zip(few, ids, strict=True):
            swap(name)
            logits.append(stock_model(input_ids=row[None]).logits)  # (1, T, vocabulary)
        return torch.cat(logits)

    pool.activate("__base__")  # so that the batch has all places
    torch.testing.assert_close(mixed(), one_by_one(), atol=1e-3, rtol=1e-3)
    swaps = in_turn(swap, names)
    batch = f"{len(few)} rows of {N_TOKENS} tokens, each with its adapter"
    compared = {
        batch: Comparison(mixed, one_by_one, 5),
        # more adapters than places, in turn: none is in memory when it is asked for
        "first activation": Comparison(in_turn(pool.activate, names), swaps, 20),
        "activation in memory": Comparison(in_turn(pool.activate, names[:2]), swaps, 20),
    }
    return {
        f"{what}, {clock} time": times
        for what, comparison in compared.items()
        for clock, times in comparison.milliseconds().items()
    }


def main() -> None:
    runs = Path(sys.argv[1])
    users = runs / "users"
    names = collect(runs, users)
    path = base_model("smollm2")
    base = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    pool = qpeft.AdapterPool(base, users, CAPACITY)
    customers = Customers(pool, AutoTokenizer.from_pretrained(path))
    everyone = ["__base__", *names]
    in_batches = [customers.answers(prompt, everyone) for prompt in PROMPTS]
    alone = [customers.answers(PROMPTS[0], [name])[0] for name in everyone[:CAPACITY]]
    replaced = replace_and_restore(customers, users / "ana", runs / REPLACEMENT / "adapter")
    base = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    stock_model = PeftModel.from_pretrained(base, runs / names[0] / "exported").eval()
    result = {
        "prompts": PROMPTS,
        "answers": {
            name: [texts[place] for texts in in_batches] for place, name in enumerate(everyone)
        },
        "equal_alone": alone == in_batches[0][:CAPACITY],
        "revisions": replaced,
        "milliseconds": comparisons(customers, stock_model, runs, names),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
