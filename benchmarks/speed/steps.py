"""A training step with each adapter compared with stock LoRA: time, peak memory, and the cost of the generation."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from speed.machine import Machine
from speed.measure import Row
from training_step import GENERATED, memory_rows, step_rows

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
