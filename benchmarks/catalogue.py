"""What a catalogue of compact adapters costs vLLM's resolver: benchmarks/results/catalogue.json.

    qpeft base smollm2
    python benchmarks/catalogue.py FOLDER 10 10000

Makes adapters of SmolLM2 in a new folder, in one frame file and each with values of its own, and
asks the resolver for ten of them, as vLLM does: for each number of adapters, in a process of its
own. Times are of the processor, in one thread. `make results` makes the table of
docs/small_adapters.md.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

BASE = "build/smollm2"
TEXT = "The Blue Spice is a pub near the riverside. It serves French food and has a high rating."
SPREAD = 0.005  # of trained values, from one adapter to the next
N_ASKED = 10
RESULT = Path(__file__).with_name("results") / "catalogue.json"


def make(folder: Path, n_adapters: int) -> None:
    """Write the frame file and the adapters."""
    import torch
    from peft import get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    import qpeft
    from qpeft.core.checkpoint import CONFIG, WEIGHTS
    from qpeft_lab.base_model import load_model

    adapter = {
        "family": "lie",
        "r": 1,
        "bits": 16,
        "lambda_bits": 16,
        "target_modules": "all-linear",
    }
    frames = {"frame": "gradient", "frame_rank": 64, "share": "type", "task_type": "CAUSAL_LM"}
    model: Any = get_peft_model(
        load_model(BASE, "float32"),  # type: ignore[arg-type]
        qpeft.QuantumPeftConfig(**adapter, **frames),
    )
    batch = AutoTokenizer.from_pretrained(BASE)(TEXT, return_tensors="pt")
    qpeft.fit_frames(model, [batch], save_to=folder / "frames")
    saved = folder / "customer-0"
    qpeft.save(model, saved)
    (key,) = load_file(saved / WEIGHTS)
    (generator,) = model.base_model.generators.values()
    for number in range(1, n_adapters):  # as qpeft.save, without the work of PEFT
        for parameter in generator.parameters():
            parameter.data += SPREAD * torch.randn(parameter.shape)
        (values,) = generator.pack(generator.state_dict()).values()
        target = folder / f"customer-{number}"
        target.mkdir()
        shutil.copy(saved / CONFIG, target)
        save_file({key: values}, target / WEIGHTS, {"format": "pt"})


def measure(folder: Path) -> dict[str, Any]:
    """The costs of the adapters in a folder."""
    import torch

    torch.set_num_threads(1)
    started = time.process_time()
    from qpeft_lab.vllm_resolver import ExportCache

    cache = folder.with_name("cache")
    exports = ExportCache(folder, cache, 10**9)
    row: dict[str, Any] = {"start_seconds": time.process_time() - started}
    row["start_memory"] = most_memory()
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    files = [*folder.glob("*/*")]
    row |= {"adapters": len(names), "bytes": sum(file.stat().st_size for file in files)}
    row["disk_bytes"] = sum(512 * path.stat().st_blocks for path in folder.glob("customer-*/**"))
    row["disk_bytes"] += sum(512 * file.stat().st_blocks for file in files)
    row["frame_bytes"] = (folder / "frames.safetensors").stat().st_size

    def seconds(name: str) -> float:
        """Of the processor for one request."""
        begun = time.process_time()
        exports.number(exports.find(name, BASE))  # type: ignore[arg-type]
        return time.process_time() - begun

    asked = sorted(names)[:: len(names) // N_ASKED][:N_ASKED]
    row["base_seconds"] = seconds(asked[0])
    row["first_seconds"] = median(map(seconds, asked[1:]))
    row["again_seconds"] = median(map(seconds, asked))
    row["memory"] = most_memory()
    row["export_bytes"] = sum(file.stat().st_size for file in cache.glob("*/*")) // N_ASKED
    return row


def most_memory() -> int:
    """The most resident bytes that this process has had.

    What it has at a moment depends on when Python last collected the model of an earlier export.
    """
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(folder: str, *numbers: str) -> None:
    """Make and measure each number of adapters, and write the result."""
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for number in numbers:
        users = Path(folder, number, "users")
        users.mkdir(parents=True)
        for function, arguments in ((make, (users, int(number))), (measure, (users,))):
            with get_context("spawn").Pool(1) as pool:
                result = pool.apply(function, arguments)
        rows.append(result)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
