"""A training step under each adapter beside one of stock LoRA: time, peak memory, and what generation takes of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from time import perf_counter, process_time

from interleave import turns
from speed.machine import Machine
from speed.row import Row
from training_step import GENERATED, generator_turn, peak_memory, turn

TITLE = "A training step, forward, backward and AdamW, one thread, float32"
USUAL = {"dtype": "float32", "device": "cpu", "r": 4, "batch_size": 1, "tokens": 64, "steps": 1}
ATTENTION = ["qpa", "quantum_peft", "qaa", "sora", "bottleneck"]


def rows(machine: Machine, quick: bool) -> Iterator[Row]:
    if quick:
        yield from step_rows("attention", ["qpa", "bottleneck"], Namespace(**USUAL, geometry="tiny"), rounds=2)
        return
    for geometry, batch_size in (("embedded", 8), ("gpt2", 1)):
        options = Namespace(**{**USUAL, "geometry": geometry, "batch_size": batch_size})
        yield from step_rows("attention", ATTENTION, options, rounds=9)
        yield from step_rows("all linear maps", GENERATED, options, rounds=9)
        yield from memory_rows("attention", ATTENTION, options)


def step_rows(case: str, methods: list[str], options: Namespace, rounds: int) -> Iterator[Row]:
    """Processor seconds of steps, on an accelerator seconds; all adapters in turns, stock LoRA twice as a control."""
    tasks = {name: turn(name, case, options) for name in ("lora", *methods)}
    tasks["second lora"] = turn("lora", case, options)
    generated = [name for name in methods if name in GENERATED]
    tasks |= {f"{name}, generation": generator_turn(name, case, options) for name in generated}
    seconds = turns(tasks, rounds, process_time if options.device == "cpu" else perf_counter)
    seconds = {name: [s / options.steps for s in samples] for name, samples in seconds.items()}
    size = f"{options.geometry}, {case}, {options.batch_size} x {options.tokens} tokens"
    for name in (*methods, "second lora"):
        yield Row.of_samples(f"{name}: {size}", "stock LoRA", seconds[name], seconds["lora"])
    for name in generated:
        yield Row.of_samples(f"{name}: {size}", "its generation", seconds[name], seconds[f"{name}, generation"])


def memory_rows(case: str, methods: list[str], options: Namespace) -> Iterator[Row]:
    """Peak bytes, each of a process of its own, once."""
    lora = peak_memory("lora", case, options)
    for name in methods:
        found = peak_memory(name, case, options)
        what = f"{name}: {options.geometry}, {case}, {options.batch_size} x {options.tokens} tokens"
        yield Row(what, "stock LoRA", "bytes", found, lora, lora / found, rounds=1)
