"""A training step on any device and model's shape, beside one of stock LoRA: the part of `bench.py`, by itself.

    python benchmarks/training_step.py                                   # QPA at GPT-2 small
    python benchmarks/training_step.py --methods quantum_peft --r 8 --case 'all linear maps'
    python benchmarks/training_step.py --device cuda --geometry llama-1b --dtype bfloat16 --batch-size 4 --tokens 1024
    python benchmarks/training_step.py --geometry tiny --rounds 2        # seconds, to see that it runs

Random weights from a model's configuration; on the CPU one thread and processor time. A step is forward, backward,
AdamW and zero_grad. An accelerator is waited for at the end of each turn. Peak memory is that of a child process each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

import qpeft
from geometries import GEOMETRIES

GENERATED = ["qpa", "quantum_peft"]
RANKED = {
    "lora": LoraConfig,
    "qpa": qpeft.QPAConfig,
    "quantum_peft": qpeft.QuantumPeftConfig,
    "sora": qpeft.SoRAConfig,
}
METHODS = [*RANKED, "qaa", "bottleneck"]
WARM_UP = 3


def config(method: str, case: str, options: argparse.Namespace) -> Any:
    """QAA is put where the others are; a bottleneck stands behind the feed-forward blocks."""
    targets = GEOMETRIES[options.geometry].cases[case]
    if method == "qaa":
        return qpeft.QAAConfig(target_modules=targets, task_type="CAUSAL_LM")
    if method == "bottleneck":
        return qpeft.BottleneckConfig(bottleneck_size=options.r, task_type="CAUSAL_LM")
    return RANKED[method](r=options.r, target_modules=targets, task_type="CAUSAL_LM")


def adapted(method: str, case: str, options: argparse.Namespace) -> Any:
    """The geometry's model under an adapter, in training mode."""
    base = GEOMETRIES[options.geometry].model(torch.device(options.device), getattr(torch, options.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on GPT-2's Conv1D, the same for all
        return get_peft_model(base, config(method, case, options)).train()


def turn(method: str, case: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that trains a fresh model by `steps` steps."""
    model = adapted(method, case, options)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)  # SoRA's gates must not decay
    if method == "sora":
        qpeft.SoRACallback.attach(optimiser, model, steps=1000)
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


def peak_memory(method: str, case: str, options: argparse.Namespace) -> int:
    """Peak bytes of a child process that trains a few turns: resident, or of the accelerator's allocator."""
    known = ("device", "geometry", "dtype", "r", "batch_size", "tokens", "steps")
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in known]
    command = [sys.executable, __file__, *flags, f"--case={case}", f"--child={method}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(options: argparse.Namespace) -> None:
    turn(options.child, options.case, options)
    if options.device != "cpu":
        print(torch.accelerator.max_memory_allocated())
        return
    # not getrusage: Linux hands the parent's peak on to its child
    status = Path("/proc/self/status").read_text().splitlines()
    print(1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["qpa"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="gpt2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base model")
    parser.add_argument("--r", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, help="training steps in a turn; 1 on the CPU and 10 elsewhere")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each model")
    parser.add_argument("--case", default="attention", help="attention, 'all linear maps', lm_head")
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (1 if options.device == "cpu" else 10)
    torch.set_num_threads(1)
    if options.child:
        child(options)
        return
    from speed import steps, table  # these import this module

    rows = [
        *steps.step_rows(options.case, options.methods, options, options.rounds),
        *steps.memory_rows(options.case, options.methods, options),
    ]
    Console().print(table.table(device_name(options.device), rows))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
