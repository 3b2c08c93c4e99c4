"""Peak memory of a training step with forward passes only (`--optimizer es`), compared with AdamW and with inference.

    python benchmarks/optimizer_memory.py                                # embedded base and the shapes of GPT-2 small
    python benchmarks/optimizer_memory.py --device cuda --batch-size 8 --tokens 1024
    python benchmarks/optimizer_memory.py --geometries tiny              # seconds, to see that it runs

Random weights in float32, one thread, and one adapter: Quantum-PEFT with circuits shared by type in random frames (r=3,
L=1, R=32, all linear maps). Two steps of each, every one in a process of its own. On the CPU the peak is that of the
resident memory of the process, with Python and the libraries; `model` is the same with the adapted model alone, before
a step. On a GPU it is that of PyTorch's allocator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

import qpeft
from qpeft.training.evolution import estimate_gradient
from training_step import GEOMETRIES, wait

OPTIMIZERS = ("model", "inference", "es", "adamw")
STEPS, PAIRS, SIGMA = 2, 2, 6e-4  # the peak depends neither on the number of pairs nor on sigma
ADAPTER: dict[str, Any] = {"r": 3, "n_layers": 1, "share": "type", "frame": "random", "lora_alpha": 16}


def step(name: str, geometry: str, options: argparse.Namespace) -> int:
    """Two steps of an optimizer, or forward passes; returns the trainable parameters."""
    base: Any = GEOMETRIES[geometry].model(torch.device(options.device), torch.float32)
    warnings.filterwarnings("ignore")  # PEFT on GPT-2's Conv1D
    config = qpeft.QuantumPeftConfig(**ADAPTER, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config).eval()  # without dropout, as the evolution strategy needs it
    parameters = [p for p in model.parameters() if p.requires_grad]
    shape = (options.batch_size, options.tokens)
    ids = torch.randint(GEOMETRIES[geometry].config.vocab_size, shape, device=options.device)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for number in range(0 if name == "model" else STEPS):
        if name == "inference":
            with torch.no_grad():
                model(input_ids=ids, labels=ids)
            continue
        if name == "es":
            _, gradient = estimate_gradient(
                lambda: model(input_ids=ids, labels=ids).loss,
                parameters,
                pairs=PAIRS,
                sigma=SIGMA,
                seed=0,
                step=number,
            )
            for parameter, found in zip(parameters, gradient, strict=True):
                parameter.grad = found
        else:
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(options.device)
    return sum(p.numel() for p in parameters)


def child(options: argparse.Namespace) -> None:
    trainable = step(options.child, options.geometries[0], options)
    if options.device != "cpu":
        peak = torch.accelerator.max_memory_allocated()
    else:  # not getrusage: on Linux a child inherits the peak of its parent
        status = Path("/proc/self/status").read_text().splitlines()
        peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"trainable": trainable, "peak_bytes": peak}))


def measure(geometry: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    flags = [f"--device={options.device}", f"--batch-size={options.batch_size}", f"--tokens={options.tokens}"]
    command = [sys.executable, __file__, *flags, f"--child={name}", f"--geometries={geometry}"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"geometry": geometry, "optimizer": name, **json.loads(found.splitlines()[-1])}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=["embedded", "gpt2"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file as well")
    parser.add_argument("--child", choices=OPTIMIZERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.child:
        child(options)
        return
    about = {"device": options.device, "batch_size": options.batch_size, "tokens": options.tokens}
    rows = [measure(geometry, name, options) for geometry in options.geometries for name in OPTIMIZERS]
    for row in rows:
        print(f"{row['geometry']:10} {row['optimizer']:10} {row['trainable']:>8,} {row['peak_bytes'] / 1e6:>10,.0f} MB")
    if options.out:
        found = {"torch": torch.__version__, **about, "rows": rows}
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
