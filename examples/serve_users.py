"""Serve users who each have an adapter of a few kilobytes, several users in one batch.

    python examples/serve_users.py                      # half a minute on two idle cores; nothing is downloaded
    python examples/serve_users.py --out elsewhere      # the same folder again serves who is there, without training

Each user has read another part of NumPy's documentation. An adapter is trained on each part and
kept in a folder, users/<name>. One model with two slots then answers requests of all of them: who
is not in a slot is brought in from the folder. The table shows that the adapters do differ: each
user's own is the best on that user's part, or nearly so.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft_lab.demo import base_path
from qpeft_lab.demo.corpus import numpy_docs

USERS = {
    "ana": "polynomial",
    "ben": "random",
    "cleo": "mask",
    "dora": "string",
}  # and the word of their part
REQUESTS = [("ana", "Returns the"), ("ben", "Returns the"), ("__base__", "Returns the"), ("cleo", "Returns the"),
            ("dora", "Returns the"), ("ana", "Parameters"), ("dora", "Parameters"), ("ben", "See Also")]  # fmt: skip
BATCH, TOKENS = 8, 64
SLOTS = 2


def blocks_of(word: str, docs: list[str], tokenizer: Any) -> Tensor:
    """The documents with this word most often, (n, 64) token ids."""
    chosen = sorted(docs, key=lambda text: -text.lower().count(word) / (100 + len(text)))[:150]
    ids = tokenizer("\n\n".join(chosen), return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)


def train(folder: Path, blocks: Tensor, steps: int) -> None:
    """Train an adapter on the blocks, and keep it in `folder`."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32")
    config = qpeft.QuantumPeftConfig(
        r=8, target_modules="all-linear", share="type", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    qpeft.save(model, folder)


@torch.no_grad()
def perplexities(
    pool: qpeft.AdapterPool, held_out: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """By adapter and by user: how well the user's held-out blocks are foretold."""
    found = {}
    for name in ["__base__", *held_out]:
        pool.activate(name)
        found[name] = {user: _perplexity(pool.model, blocks) for user, blocks in held_out.items()}
    pool.activate("__base__")
    return found


def _perplexity(model: Any, blocks: Tensor) -> float:
    return math.exp(
        model(input_ids=blocks, attention_mask=torch.ones_like(blocks), labels=blocks).loss
    )


def answer(
    pool: qpeft.AdapterPool, tokenizer: Any, requests: list[tuple[str, str]], n_new: int
) -> list[str]:
    """The continuations, each by the adapter of who asks; as many requests at a time as users fit
    into the slots.
    """
    tokenizer.padding_side = "left"
    batch = tokenizer([prompt for _, prompt in requests], return_tensors="pt", padding=True)
    names = pool.place([user for user, _ in requests])
    written = pool.model.generate(
        **batch,
        adapter_names=names,
        max_new_tokens=n_new,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(written[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


def batches(requests: list[tuple[str, str]], capacity: int) -> list[list[tuple[str, str]]]:
    """In their order, cut before a batch would name more users than there are slots."""
    cut: list[list[tuple[str, str]]] = [[]]
    for request in requests:
        users = {user for user, _ in [*cut[-1], request]} - {"__base__"}
        if len(users) > capacity:
            cut.append([])
        cut[-1].append(request)
    return cut


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def show_fit(pool: qpeft.AdapterPool, found: dict[str, dict[str, float]]) -> None:
    users = list(found["__base__"])
    shown = Table(
        "adapter", *users, "weights", "folder", title="Perplexity on each user's held-out part"
    )
    for name, row in found.items():
        sizes = ["", ""]
        if name != "__base__":
            folder = pool.folder / name
            sizes = [
                f"{n / 1e3:.1f} KB"
                for n in ((folder / "adapter_model.safetensors").stat().st_size, size(folder))
            ]
        shown.add_row(name, *(f"{row[user]:.1f}" for user in users), *sizes)
    Console().print(shown)


def serve(pool: qpeft.AdapterPool, tokenizer: Any, n_new: int) -> None:
    shown = Table(
        "batch",
        "user",
        "request",
        "answer",
        "ms a request",
        title=f"Answers, {pool.capacity} slots",
    )
    for index, requests in enumerate(batches(REQUESTS, pool.capacity)):
        start = perf_counter()
        answers = answer(pool, tokenizer, requests, n_new)
        milliseconds = 1e3 * (perf_counter() - start) / len(requests)
        for (user, prompt), text in zip(requests, answers, strict=True):
            shown.add_row(str(index), user, prompt, " ".join(text.split()), f"{milliseconds:.0f}")
        shown.add_section()
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("serve-users-run"), help="where the users' adapters go"
    )
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps for each user")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of each answer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    docs, held_out = numpy_docs(), {}
    for user, word in USERS.items():
        blocks = blocks_of(word, docs, tokenizer)
        blocks, held_out[user] = blocks[:-BATCH], blocks[-BATCH:]
        if not (arguments.out / user).is_dir():
            train(arguments.out / user, blocks, arguments.steps)
    base = AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32")
    pool = qpeft.AdapterPool(base, arguments.out, capacity=SLOTS)
    show_fit(pool, perplexities(pool, held_out))
    serve(pool, tokenizer, arguments.new_tokens)


if __name__ == "__main__":
    main()
