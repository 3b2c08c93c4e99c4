"""Adapters that refer to a frame file: bytes on the disk, milliseconds to load one of many, and loss of rounded values.

    python benchmarks/frame_files.py                                    # both parts: a few minutes
    python benchmarks/frame_files.py --out benchmarks/results/frame_files.json
    python benchmarks/frame_files.py --users 20 --seeds 0 --steps 2     # seconds, to see that it runs

Load: GPT-2 small's shapes with random weights, `c_attn` in 12 layers, 298 trained parameters, one thread: all adapters
one after the other, then some after a request of 16 tokens each, which leaves the processor's caches cold; and PEFT's
`hotswap_adapter` of the exported LoRA in both situations. Loss: the embedded base on NumPy's documentation, 284 trained
parameters, trained in float32; then the trained values are rounded as they are stored. Rounding in training, as `bits`
does it, can adapt to it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import qpeft
from qpeft.demo import base_path
from qpeft.demo.corpus import numpy_docs
from training_step import GEOMETRIES

STORAGE: dict[str, dict[str, int]] = {
    "float32": {},
    "float16": {"bits": 16, "lambda_bits": 16},
    "8 bits": {"bits": 8, "lambda_bits": 8, "group_size": 0},
    "8 bits, lambda 4 bits": {"bits": 8, "lambda_bits": 4, "group_size": 0},
}
SHARED: dict[str, Any] = {"share": "type", "task_type": "CAUSAL_LM"}
LOADED = {**SHARED, "r": 8, "n_layers": 12, "target_modules": ["c_attn"]}
TRAINED = {**SHARED, "r": 9, "n_layers": 1, "target_modules": "all-linear"}
LOADS = ("in a row", "PEFT, in a row", "after a request", "PEFT, after a request")
CAPACITY, REQUEST, BLOCK, BATCH = 8, 16, 128, 4


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def load_times(name: str, users: int, repetitions: int) -> dict[str, Any]:
    """Times of loading `users` adapters with random trained values and one frame file, none of them in memory."""
    base: Any = GEOMETRIES["gpt2"].model(torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory() as place:
        frames, folder = Path(place) / "frames.safetensors", Path(place) / "users"
        model: Any = get_peft_model(base, qpeft.QuantumPeftConfig(**LOADED, **STORAGE[name], frame="gradient"))
        qpeft.fit_frames(model, [{"input_ids": torch.randint(1000, (1, 32))}], save_to=frames)
        for index in range(users):
            with torch.no_grad():
                for parameter in model.base_model.generators.parameters():
                    parameter.normal_(0, 0.02)
            qpeft.save(model, folder / f"user-{index}")
        trained = model.get_nb_trainable_parameters()[0]
        qpeft.export(model, Path(place) / "stock")
        stock: Any = PeftModel.from_pretrained(
            GEOMETRIES["gpt2"].model(torch.device("cpu"), torch.float32), Path(place) / "stock"
        )
        pool = qpeft.AdapterPool(model.unload(), folder, CAPACITY)
        times: dict[str, list[float]] = {kind: [] for kind in LOADS}

        def load(kind: str, user: str) -> None:
            times[kind].append(milliseconds(pool.place, [user]))

        def swap(kind: str) -> None:
            file = str(Path(place) / "stock")
            times[kind].append(milliseconds(hotswap_adapter, stock, file, "default", torch_device="cpu"))

        names = pool.names
        for user in names:
            load("in a row", user)
        for _ in range(repetitions):
            swap("PEFT, in a row")
        for user in (names * repetitions)[:repetitions]:
            request(pool.model)
            load("after a request", user)
            request(stock)
            swap("PEFT, after a request")
        (stored,) = load_file(folder / "user-0" / "adapter_model.safetensors").values()
        return {
            "storage": name,
            "trained": trained,
            "users": users,
            "tensor_bytes": stored.numel(),
            "bytes_of_an_adapter": size(folder / "user-0"),
            "bytes_of_all": size(folder),
            "bytes_of_the_frame_file": frames.stat().st_size,
            "ms": {kind: {"median": median(ms), "99th": quantiles(ms, n=100)[98]} for kind, ms in times.items()},
        }


@torch.no_grad()
def request(model: Any) -> None:
    model(input_ids=torch.randint(1000, (1, REQUEST)))


def milliseconds(call: Callable[..., object], *arguments: Any, **options: Any) -> float:
    begin = perf_counter()
    call(*arguments, **options)
    return 1e3 * (perf_counter() - begin)


def losses(seed: int, steps: int) -> dict[str, float]:
    """Loss on held-out text of one adapter, trained in float32, by how its values are stored."""
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    text = tokenizer("\n\n".join(numpy_docs()), return_tensors="pt", verbose=False).input_ids[0]
    blocks = torch.stack(text.split(BLOCK)[:-1])
    held_out, train = blocks[::20][:64], blocks[torch.arange(len(blocks)) % 20 != 0]

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32")

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as place:
        frames = Path(place) / "frames.safetensors"
        model: Any = get_peft_model(load(), qpeft.QuantumPeftConfig(**TRAINED, seed=seed, frame="gradient"))
        chosen = train[:: max(1, len(train) // 64)][:64]
        qpeft.fit_frames(model, [{"input_ids": batch} for batch in chosen.split(8)], save_to=frames)
        fit(model, train, steps)
        values = {name: p.detach().clone() for name, p in model.base_model.generators["default"].named_parameters()}
        found = {"base": score(load(), held_out)}
        for name, storage in STORAGE.items():
            config = qpeft.QuantumPeftConfig(**TRAINED, **storage, seed=seed, frames=str(frames))
            rounded: Any = get_peft_model(load(), config)
            rounded.base_model.generators["default"].load_state_dict(values, strict=False)
            rounded.base_model.invalidate()
            shutil.rmtree(Path(place) / "adapter", ignore_errors=True)
            qpeft.save(rounded, Path(place) / "adapter")
            found[name] = score(qpeft.load(load(), Path(place) / "adapter"), held_out)
    return found


def fit(model: Any, blocks: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def score(model: Any, blocks: torch.Tensor) -> float:
    model.eval()
    return sum(model(input_ids=batch, labels=batch).loss.item() for batch in blocks.split(16)) / len(blocks.split(16))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000, help="adapters in the folder")
    parser.add_argument("--repetitions", type=int, default=100, help="requests, each with a load")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each seed")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file as well")
    options = parser.parse_args(arguments)
    if min(options.users, options.repetitions) < 2:
        parser.error("--users and --repetitions must be at least 2, for a percentile")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    found: dict[str, Any] = {"torch": torch.__version__, "steps": options.steps, "load": [], "loss": {}}
    for name in ("float16", "8 bits, lambda 4 bits"):
        found["load"].append(load_times(name, options.users, options.repetitions))
        print(json.dumps(found["load"][-1]))
    for seed in options.seeds:
        found["loss"][seed] = losses(seed, options.steps)
        print(seed, {name: round(value, 5) for name, value in found["loss"][seed].items()})
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
