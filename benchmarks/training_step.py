"""What a generated adapter adds to a training step of stock LoRA: time and peak memory at GPT-2-small geometry.

    python benchmarks/training_step.py                                  # QPA: a table
    python benchmarks/training_step.py --method quantum_peft --r 8      # Quantum-PEFT
    python benchmarks/training_step.py --json                           # the same for machines

GPT-2 small from its configuration (124M random weights, nothing is downloaded), float32, one thread. A step is
forward, backward, AdamW and zero_grad. Times are medians of interleaved steps of both models in one process, beside
a second stock model as a control; peak memory is that of one child process for each.
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
from transformers import GPT2Config, GPT2LMHeadModel

import qpeft
from interleave import interleave

CASES: dict[str, list[str]] = {
    "c_attn": ["c_attn"],
    "all linear maps": ["c_attn", "c_proj", "c_fc"],
    "lm_head": ["lm_head"],
}
CONFIGS = {"lora": LoraConfig, "qpa": qpeft.QPAConfig, "quantum_peft": qpeft.QuantumPeftConfig}


def stepper(method: str, case: str, r: int, batch_size: int, n_tokens: int) -> Callable[[], object]:
    """A function that trains a fresh model by one step."""
    torch.manual_seed(0)
    config = CONFIGS[method](r=r, target_modules=CASES[case], fan_in_fan_out=case != "lm_head")
    model = get_peft_model(GPT2LMHeadModel(GPT2Config()), config).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(50257, (batch_size, n_tokens))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peak_memory(method: str, case: str, r: int, batch_size: int, n_tokens: int) -> int:
    """Peak resident bytes of a child process that trains five steps."""
    sizes = ["--r", str(r), "--batch-size", str(batch_size), "--tokens", str(n_tokens)]
    command = [sys.executable, __file__, "--child", method, case, *sizes]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(method: str, case: str, r: int, batch_size: int, n_tokens: int) -> None:
    step = stepper(method, case, r, batch_size, n_tokens)
    for _ in range(5):
        step()
    # not getrusage: Linux hands the parent's peak on to its child
    status = Path("/proc/self/status").read_text().splitlines()
    print(1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))


def measure(method: str, case: str, sizes: tuple[int, int, int], repetitions: int) -> dict[str, Any]:
    methods = {"lora": "lora", "control": "lora", "generated": method}
    steppers = {name: stepper(used, case, *sizes) for name, used in methods.items()}
    seconds = interleave(steppers, repetitions)
    steppers.clear()
    memory = {name: peak_memory(used, case, *sizes) for name, used in methods.items() if name != "control"}
    named = dict(zip(("r", "batch_size", "tokens"), sizes, strict=True))
    return {"method": method, "case": case, **named, "seconds": seconds, "peak_bytes": memory}


def table(method: str, rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"A step of {method} against one of stock LoRA, GPT-2 small, one thread")
    for heading in ("case", "rank", "batch", "LoRA, ms", "ratio", "LoRA again, ratio", "peak memory, ratio"):
        shown.add_column(heading, justify="right")
    for row in rows:
        seconds, memory = row["seconds"], row["peak_bytes"]
        shown.add_row(
            row["case"],
            str(row["r"]),
            f"{row['batch_size']} x {row['tokens']}",
            f"{1e3 * seconds['lora']:.0f}",
            f"{seconds['generated'] / seconds['lora']:.3f}",
            f"{seconds['control'] / seconds['lora']:.3f}",
            f"{memory['generated'] / memory['lora']:.4f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["qpa", "quantum_peft"], default="qpa")
    parser.add_argument("--r", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", action="store_true", help="print seconds and bytes as JSON instead of ratios")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sizes = (arguments.r, arguments.batch_size, arguments.tokens)
    if arguments.child:
        child(*arguments.child, *sizes)
        return
    rows = [measure(arguments.method, case, sizes, arguments.repetitions) for case in arguments.cases]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(table(arguments.method, rows))


if __name__ == "__main__":
    main()
