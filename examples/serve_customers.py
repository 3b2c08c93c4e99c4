"""Serve the customers of docs/small_adapters.md from one pool: several in a batch, one replaced and
restored.

    python examples/serve_customers.py serve-run      # after `make serve`, which trains the adapters

The folder has a run for each customer, `replacement` (a later run of ana's) and the frame file. The
answers are printed as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft_lab import revisions
from qpeft_lab.demo import base_model

CAPACITY = 4  # adapters in memory, and in a batch
N_TOKENS = 32
REPLACEMENT = "replacement"
PROMPTS = [
    "name: The Blue Spice, type: pub, food: Thai, near: Burger King\n",
    "Once upon a time",
    "Tom has 3 boxes with 12 pencils each. How many pencils does he have?\n",
    "Returns the",
]


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
    """Copy the compact checkpoint of each run to a folder of its customer; the customers' names."""
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
    alone = [customers.answers(PROMPTS[0], [name])[0] for name in everyone]
    answers = {
        "prompts": PROMPTS,
        "answers": {
            name: [texts[place] for texts in in_batches] for place, name in enumerate(everyone)
        },
        "equal_alone": alone == in_batches[0],
        "revisions": replace_and_restore(customers, users / "ana", runs / REPLACEMENT / "adapter"),
    }
    print(json.dumps(answers, indent=1))


if __name__ == "__main__":
    main()
