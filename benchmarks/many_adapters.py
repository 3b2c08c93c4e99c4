"""What it costs to bring one of a thousand compact adapters into a model, and to answer with several at a time.

    python benchmarks/many_adapters.py                                        # GPT-2 small, all cases: a table
    python benchmarks/many_adapters.py --out benchmarks/results/many_adapters.json
    python benchmarks/many_adapters.py --geometry tiny --users 20 --repetitions 3   # seconds, to see that it runs

Random weights from GPT-2's configuration, random trained numbers, one thread. Each round does everything once, so the
machine's other work is spread evenly; times are milliseconds of the wall and of the processor, medians and the 99th
percentile. `cold`: after the files were dropped from the page cache. `other seed`: the start is drawn anew. Beside, for
a stock LoRA of the same tensors: PEFT's `load_adapter`, its `hotswap_adapter`, and its `set_adapter`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from rich.console import Console
from rich.table import Table

import qpeft
from geometries import GEOMETRIES

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "QPA, r=4": (qpeft.QPAConfig, {"r": 4}),
    "QPA, r=4, 5 % trained": (qpeft.QPAConfig, {"r": 4, "budget": 0.05}),
    "Quantum-PEFT, r=8": (qpeft.QuantumPeftConfig, {"r": 8}),
    "Quantum-PEFT, r=8, one circuit a type": (qpeft.QuantumPeftConfig, {"r": 8, "share": "type"}),
}
N_SEEDS = N_STOCK = 24  # more than slots, and asked for in turn: none is there when its turn comes
CAPACITY = 8
ROWS, TOKENS = 8, 16


def write_users(folder: Path, model: Any, names: list[str]) -> None:
    """Adapters with random trained numbers."""
    for name in names:
        with torch.no_grad():
            for parameter in model.base_model.generators.parameters():
                parameter.normal_(0, 1e-3)
        qpeft.save(model, folder / name)


def write_stock(folder: Path, base: Any, config: Any) -> None:
    model: Any = get_peft_model(base, config.to_stock())
    for index in range(N_STOCK):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 1e-3)
        model.save_pretrained(folder / f"stock-{index}", save_embedding_layers=False)
    model.unload()


def prepare(method: str, modules: list[str], options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """Users of one seed, some of other seeds, and stock adapters; the base and the config."""
    kind, settings = METHODS[method]
    base: Any = GEOMETRIES[options.geometry].model(torch.device("cpu"), torch.float32)
    for seed in range(N_SEEDS + 1):
        model: Any = get_peft_model(base, kind(**settings, target_modules=modules, task_type="CAUSAL_LM", seed=seed))
        config = model.base_model.generated_config("default")
        names = [f"user-seed-{seed}"] if seed else [f"user-{index}" for index in range(options.users)]
        write_users(folder / "compact", model, names)
        base = model.unload()
    write_stock(folder / "stock", base, config)
    return base, config


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
        first, second, cold, *others = draw.sample(users, CAPACITY + 3)
        clock.time("materialise", pool.place, [first])
        forget(folder / "compact" / cold)
        clock.time("materialise, cold", pool.place, [cold])
        clock.time("materialise, other seed", pool.place, [f"user-seed-{1 + index % N_SEEDS}"])
        pool.place([first, second])
        pool.activate(first)
        clock.time("switch to one in a slot", pool.activate, second)
        clock.time("the same again", pool.activate, second)
        with torch.no_grad():
            clock.time("generate its numbers", generator)
            clock.time("forward, one adapter", pool.model, input_ids=ids)
            pool.activate("__base__")
            rows = pool.place(others)
            clock.time("forward, 8 adapters", pool.model, input_ids=ids, adapter_names=rows)
            clock.time("forward, no adapter", pool.model, input_ids=ids)
        path = str(folder / "stock" / f"stock-{index % N_STOCK}")
        clock.time("PEFT hotswap_adapter", hotswap_adapter, stock, path, "default", torch_device="cpu")
        clock.time("PEFT load_adapter", stock.load_adapter, path, "other", torch_device="cpu")
        clock.time("PEFT set_adapter", stock.set_adapter, "other")
        stock.set_adapter("default")
        stock.delete_adapter("other")
    return clock


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(method: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    modules = GEOMETRIES[options.geometry].cases[case]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base, _ = prepare(method, modules, options, folder)
        stock = PeftModel.from_pretrained(
            GEOMETRIES[options.geometry].model(torch.device("cpu"), torch.float32), str(folder / "stock" / "stock-0")
        ).eval()
        start = perf_counter()
        pool = qpeft.AdapterPool(base, folder / "compact", CAPACITY)
        seconds = perf_counter() - start
        times = rounds(pool, stock, folder, options).summary()
        weights = "adapter_model.safetensors"
        return {
            "method": method,
            "case": case,
            "deployed": sum(pool._reader._sizes),
            "trained": sum(p.numel() for p in pool._reader._first.parameters()),
            "bytes": {
                "compact": (folder / "compact" / "user-0" / weights).stat().st_size,
                "compact_folder": size(folder / "compact" / "user-0"),
                "stock": (folder / "stock" / "stock-0" / weights).stat().st_size,
            },
            "pool_seconds": seconds,
            "ms": times,
        }


def table(found: dict[str, Any]) -> Table:
    shown = Table(
        title=f"{found['users']:,} compact adapters, {found['geometry']}, one thread: milliseconds",
        caption=f"{CAPACITY} slots, {found['repetitions']} rounds, {ROWS} x {TOKENS} tokens, PyTorch {found['torch']}",
    )
    for heading in ("", "wall", "99 %", "processor", "least"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for row in found["rows"]:
        sizes = row["bytes"]
        shown.add_section()
        shown.add_row(
            f"[bold]{row['method']}, {row['case']}[/]\n{row['deployed']:,} numbers from {row['trained']:,}; "
            f"{sizes['compact'] / 1e3:,.1f} KB, stock {sizes['stock'] / 1e3:,.0f} KB"
        )
        for name, times in row["ms"].items():
            columns = (times[key] for key in ("wall", "wall_99", "processor", "processor_least"))
            shown.add_row(f"  {name}", *(f"{value:.2f}" for value in columns))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=["gpt2", "tiny"], default="gpt2")
    parser.add_argument("--users", type=int, default=1000, help="adapters in the folder")
    parser.add_argument("--repetitions", type=int, default=100, help="rounds")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cases", nargs="+", default=["attention", "all linear maps"])
    parser.add_argument("--out", type=Path, help="write the figures there, too, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    chosen = {key: getattr(options, key) for key in ("geometry", "users", "repetitions")}
    rows = [measure(method, case, options) for case in options.cases for method in options.methods]
    found = {"torch": torch.__version__, **chosen, "capacity": CAPACITY, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    Console().print(table(found))


if __name__ == "__main__":
    main()
