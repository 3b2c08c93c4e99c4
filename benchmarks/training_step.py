"""What a generated adapter adds to a training step of stock LoRA: time and peak memory.

    python benchmarks/training_step.py                                   # QPA at GPT-2 small: a table
    python benchmarks/training_step.py --method quantum_peft --r 8       # Quantum-PEFT
    python benchmarks/training_step.py --json                            # the same for machines
    python benchmarks/training_step.py --device cuda --geometry llama-1b --dtype bfloat16 --batch-size 4 --tokens 1024
    python benchmarks/training_step.py --geometry tiny --repetitions 2   # seconds, to see that it runs

Random weights from a model's configuration; on the CPU one thread. A step is forward, backward, AdamW and zero_grad.
Times are medians of interleaved turns of both models in one process, beside a second stock model as a control and the
generator alone (one evaluation and one backward, as each step has); an accelerator is waited for at the end of each
turn. Peak memory is that of one child process for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table

import qpeft
from geometries import GEOMETRIES
from interleave import interleave

CONFIGS = {"lora": LoraConfig, "qpa": qpeft.QPAConfig, "quantum_peft": qpeft.QuantumPeftConfig}
WARM_UP = 3


def adapted(method: str, case: str, options: argparse.Namespace) -> Any:
    """The geometry's model under an adapter, in training mode."""
    geometry = GEOMETRIES[options.geometry]
    config = CONFIGS[method](r=options.r, target_modules=geometry.cases[case])
    base = geometry.model(torch.device(options.device), getattr(torch, options.dtype))
    return get_peft_model(base, config).train()


def turn(method: str, case: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that trains a fresh model by `steps` steps."""
    model = adapted(method, case, options)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    shape = (options.batch_size, options.tokens)
    ids = torch.randint(GEOMETRIES[options.geometry].config.vocab_size, shape, device=options.device)

    def run() -> None:
        for _ in range(options.steps):
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        wait(options.device)

    for _ in range(WARM_UP):
        run()
    return run


def generator_turn(method: str, case: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that evaluates the generator and pulls a gradient back through it, `steps` times."""
    binding = adapted(method, case, options).base_model.binding("default")
    parameters = [p for p in binding.generator.parameters() if p.requires_grad]

    def run() -> None:
        for _ in range(options.steps):
            flat = binding.generator()
            torch.autograd.grad(flat, parameters, flat.detach(), allow_unused=True)
        wait(options.device)

    run()
    return run


def wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_memory(method: str, case: str) -> int:
    """Peak bytes of a child process that trains a few turns: resident, or of the accelerator's allocator."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", method, case]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(method: str, case: str, options: argparse.Namespace) -> None:
    turn(method, case, options)
    if options.device != "cpu":
        print(torch.accelerator.max_memory_allocated())
        return
    # not getrusage: Linux hands the parent's peak on to its child
    status = Path("/proc/self/status").read_text().splitlines()
    print(1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    methods = {"lora": "lora", "control": "lora", "generated": options.method}
    turns = {name: turn(method, case, options) for name, method in methods.items()}
    turns["generator"] = generator_turn(options.method, case, options)
    seconds = {name: s / options.steps for name, s in interleave(turns, options.repetitions).items()}
    turns.clear()
    memory = {name: peak_memory(method, case) for name, method in methods.items() if name != "control"}
    ratio = {name: seconds[name] / seconds["lora"] for name in ("generated", "control", "generator")}
    return {"case": case, "seconds": seconds, "ratio": ratio, "peak_bytes": memory}


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name() if device.startswith("cuda") else device
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "CPU"


def report(options: argparse.Namespace) -> dict[str, Any]:
    known = ("method", "geometry", "dtype", "r", "batch_size", "tokens", "steps", "repetitions")
    cases = options.cases or list(GEOMETRIES[options.geometry].cases)
    return {
        "device": device_name(options.device),
        "torch": torch.__version__,
        **{name: getattr(options, name) for name in known},
        "rows": [measure(case, options) for case in cases],
    }


def table(found: dict[str, Any]) -> Table:
    title = (
        "A step of {method} against one of stock LoRA: {geometry}, {dtype}, rank {r}, {batch_size} x {tokens} tokens"
    )
    shown = Table(title=title.format(**found), caption=f"{found['device']}, PyTorch {found['torch']}")
    headings = ("LoRA, ms", "ratio", "LoRA again, ratio", "generator alone, ms", "peak memory, ratio")
    for heading in ("case", *headings):
        shown.add_column(heading, justify="right")
    for row in found["rows"]:
        seconds, memory = row["seconds"], row["peak_bytes"]
        shown.add_row(
            row["case"],
            f"{1e3 * seconds['lora']:.1f}",
            f"{row['ratio']['generated']:.3f}",
            f"{row['ratio']['control']:.3f}",
            f"{1e3 * seconds['generator']:.1f}",
            f"{memory['generated'] / memory['lora']:.4f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["qpa", "quantum_peft"], default="qpa")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="gpt2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base model")
    parser.add_argument("--r", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, help="training steps in a turn; 1 on the CPU and 10 elsewhere")
    parser.add_argument("--repetitions", type=int, default=15, help="turns of each model")
    parser.add_argument("--cases", nargs="+", help="attention, 'all linear maps', lm_head; all by default")
    parser.add_argument("--json", action="store_true", help="print seconds, ratios and bytes as JSON instead")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (1 if options.device == "cpu" else 10)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.child:
        child(*options.child, options)
        return
    found = report(options)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(table(found))


if __name__ == "__main__":
    main()
