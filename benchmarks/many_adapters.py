"""The cost of loading one of a thousand compact adapters into a model, and of batches with several adapters.

    python benchmarks/many_adapters.py                                        # GPT-2 small, all cases: a table
    python benchmarks/many_adapters.py --out benchmarks/results/many_adapters.json
    python benchmarks/many_adapters.py --geometry tiny --users 20 --repetitions 3   # seconds, to see that it runs

Random weights from GPT-2's configuration, random parameters, one thread. Every round measures everything once, so other
load affects all equally; times are milliseconds of the wall and of the processor, medians and the 99th percentile.
`cold`: after the files were dropped from the page cache. `other seed`: new initial values are drawn. For comparison,
with a stock LoRA of the same tensors: PEFT's `load_adapter`, `hotswap_adapter` and `set_adapter`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

import pandas as pd
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file

import qpeft
from training_step import GEOMETRIES

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "QPA, r=4": (qpeft.QPAConfig, {"r": 4}),
    "QPA, r=4, 5 % trained": (qpeft.QPAConfig, {"r": 4, "budget": 0.05}),
    "Quantum-PEFT, r=8": (qpeft.QuantumPeftConfig, {"r": 8}),
    "Quantum-PEFT, r=8, one circuit a type": (qpeft.QuantumPeftConfig, {"r": 8, "share": "type"}),
    "Quantum-PEFT, r=8, one circuit a type, pad": (
        qpeft.QuantumPeftConfig,
        {"r": 8, "share": "type", "construction": "pad"},
    ),
}
N_SEEDS = N_STOCK = 12  # more than slots, used in turn: each was evicted before its next turn
CAPACITY = 8
ROWS, TOKENS = 8, 16
EVERY = 10  # rounds per measurement of the slow operations
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_user(folder: Path, like: Path) -> None:
    """The adapter `like` with other values of its trained parameters."""
    shutil.copytree(like, folder)
    state = load_file(folder / WEIGHTS)
    save_file(
        {k: 1e-3 * torch.randn_like(t) if t.is_floating_point() else t for k, t in state.items()}, folder / WEIGHTS
    )
    seal = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, "weights_sha256": seal}, indent=2, sort_keys=True))


def prepare(method: str, modules: list[str], options: argparse.Namespace, base: Any, folder: Path) -> Any:
    """Users of one seed, some of other seeds, and stock adapters in their folders; the base."""
    kind, settings = METHODS[method]
    for seed in range(N_SEEDS + 1):
        model: Any = get_peft_model(base, kind(**settings, target_modules=modules, task_type="CAUSAL_LM", seed=seed))
        stock = model.base_model.generated_config("default").to_stock()
        first = folder / "compact" / (f"user-seed-{seed}" if seed else "user-0")
        qpeft.save(model, first)
        base = model.unload()
    for index in range(1, options.users):
        write_user(folder / "compact" / f"user-{index}", folder / "compact" / "user-0")
    model = get_peft_model(base, stock)
    model.save_pretrained(folder / "stock" / "0", save_embedding_layers=False)
    for index in range(1, N_STOCK):
        write_user(folder / "stock" / str(index), folder / "stock" / "0")
    return model.unload()


class Clock:
    """Times of the wall and of the processor, in milliseconds, by name."""

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, task: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        wall, processor = perf_counter(), process_time()
        result = task(*arguments, **options)
        processor, wall = process_time() - processor, perf_counter() - wall
        self.samples.setdefault(name, []).append((1e3 * wall, 1e3 * processor))
        return result

    def summary(self) -> dict[str, dict[str, float]]:
        found = {}
        for name, pairs in self.samples.items():
            wall, processor = zip(*pairs, strict=True)
            highest = quantiles(wall, n=100)[98] if len(wall) > 1 else wall[0]
            found[name] = {"wall": median(wall), "wall_99": highest, "processor": median(processor)}
            found[name]["processor_least"] = min(processor)
        return found


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def rounds(pool: qpeft.AdapterPool, stock: Any, folder: Path, options: argparse.Namespace) -> Clock:
    clock, draw = Clock(), random.Random(0)
    users = [name for name in pool.names if "seed" not in name]
    ids = torch.randint(1000, (ROWS, TOKENS))
    generator = pool._reader._first
    for index in range(options.repetitions):
        first, second, cold = draw.sample([name for name in users if name not in pool.resident], 3)
        clock.time("materialise", pool.place, [first])
        forget(folder / "compact" / cold)
        clock.time("materialise, cold", pool.place, [cold])
        clock.time("materialise, other seed", pool.place, [f"user-seed-{1 + index % N_SEEDS}"])
        pool.place([first, second])
        pool.activate(first)
        clock.time("switch to one in a slot", pool.activate, second)
        clock.time("the same again", pool.activate, second)
        with torch.no_grad():
            clock.time("of these: generate", generator)
        if index % EVERY == 0:
            forwards(clock, pool, draw.sample(users, ROWS), ids)
            peft(clock, stock, [str(folder / "stock" / str((index + i) % N_STOCK)) for i in range(3)])
    return clock


@torch.no_grad()
def forwards(clock: Clock, pool: qpeft.AdapterPool, names: list[str], ids: torch.Tensor) -> None:
    for _ in range(2):
        clock.time("forward, one adapter", pool.model, input_ids=ids)
        pool.activate("__base__")
        clock.time("forward, no adapter", pool.model, input_ids=ids)
        rows = pool.place(names)
        clock.time("forward, 8 adapters", pool.model, input_ids=ids, adapter_names=rows)
        pool.activate(names[0])


def peft(clock: Clock, stock: Any, folders: list[str]) -> None:
    """PEFT's functions for stock adapters with the same tensors."""
    for folder in folders:
        clock.time("PEFT hotswap_adapter", hotswap_adapter, stock, folder, "default", torch_device="cpu")
        clock.time("PEFT load_adapter", stock.load_adapter, folder, "other", torch_device="cpu")
        clock.time("PEFT set_adapter", stock.set_adapter, "other")
        stock.set_adapter("default")
        stock.delete_adapter("other")


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(method: str, case: str, options: argparse.Namespace, bases: list[Any]) -> dict[str, Any]:
    modules = GEOMETRIES[options.geometry].cases[case]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bases[0] = prepare(method, modules, options, bases[0], folder)
        stock: Any = PeftModel.from_pretrained(bases[1], str(folder / "stock" / "0")).eval()
        pool = qpeft.AdapterPool(bases[0], folder / "compact", CAPACITY)
        times = rounds(pool, stock, folder, options).summary()
        bases[:] = pool.model.unload(), stock.unload()
        return {
            "method": method,
            "case": case,
            "deployed": sum(pool._reader._sizes),
            "trained": sum(p.numel() for p in pool._reader._first.parameters()),
            "bytes": {
                "compact": (folder / "compact" / "user-0" / WEIGHTS).stat().st_size,
                "compact_folder": size(folder / "compact" / "user-0"),
                "stock": (folder / "stock" / "0" / WEIGHTS).stat().st_size,
            },
            "ms": times,
        }


def show(found: dict[str, Any]) -> None:
    print(f"{found['users']:,} adapters, {found['geometry']}, {CAPACITY} slots, {found['repetitions']} rounds; ms")
    for row in found["rows"]:
        sizes = row["bytes"]
        print(
            f"\n{row['method']}, {row['case']}: {row['deployed']:,} adapter parameters from {row['trained']:,}; "
            f"{sizes['compact'] / 1e3:,.1f} KB, stock {sizes['stock'] / 1e3:,.0f} KB"
        )
        print(pd.DataFrame(row["ms"]).T.round(2).to_string())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=["gpt2", "tiny"], default="gpt2")
    parser.add_argument("--users", type=int, default=1000, help="adapters in the folder")
    parser.add_argument("--repetitions", type=int, default=100, help="rounds")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    parser.add_argument("--cases", nargs="+", default=["attention", "all linear maps"])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file as well")
    options = parser.parse_args(arguments)
    if not options.methods:  # the smallest generator is larger than 5 % of a tiny adapter
        options.methods = [name for name in METHODS if options.geometry != "tiny" or "5 %" not in name]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    chosen = {key: getattr(options, key) for key in ("geometry", "users", "repetitions")}
    bases = [GEOMETRIES[options.geometry].model(torch.device("cpu"), torch.float32) for _ in range(2)]
    found: dict[str, Any] = {"torch": torch.__version__, **chosen, "capacity": CAPACITY, "rows": []}
    for case in options.cases:
        for method in options.methods:
            found["rows"].append(measure(method, case, options, bases))
            if options.out:
                options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
