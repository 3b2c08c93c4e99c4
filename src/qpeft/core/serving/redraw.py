"""The same generator from another seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qpeft.core.binding import Slot
from qpeft.core.generator import Generator
from qpeft.core.lora_init import draw_without_base
from qpeft.core.seeded_init import SeededStart
from qpeft.errors import ConfigError
from qpeft.methods.qpa.generator import QPAGenerator
from qpeft.methods.quantum_peft.generator import QuantumPeftGenerator


def redraw(generator: Generator, slots: Sequence[Slot], config: Any) -> Generator:
    """A generator like `generator`, with the start of `config.seed`; nothing of it is trained.

    Args:
        generator: What is made anew.
        slots: The tensors that it fills, in its order.
        config: Its settings, with the other seed.

    Raises:
        CheckpointError: the config names another start than this seed's.
        ConfigError: a kind of generator whose start is not drawn here.
    """
    start = SeededStart(config.seed)
    made = _make(generator, slots, config, start)
    config.check_start(start.hexdigest())
    return made.to(next(generator.buffers()).device)


def _make(generator: Generator, slots: Sequence[Slot], config: Any, start: SeededStart) -> Generator:
    if isinstance(generator, QuantumPeftGenerator):
        gains = torch.empty(0) if generator.gains is None else generator.gains.start
        return QuantumPeftGenerator(config, generator.layout, start, gains.cpu())
    if isinstance(generator, QPAGenerator):
        initial = _initial(generator, slots, config, start)
        with warnings.catch_warnings():  # what the generator says of its size it said when it was trained
            warnings.simplefilter("ignore")
            return QPAGenerator(config, initial, start)
    raise ConfigError(f"{type(generator).__name__} is not drawn from another seed here; train all with one seed")


def _initial(generator: QPAGenerator, slots: Sequence[Slot], config: Any, start: SeededStart) -> Tensor:
    """w0: LoRA's start from the seed; DoRA's magnitudes are the base's, whatever the seed."""
    present = generator.initial.cpu().split([slot.shape.numel() for slot in slots])
    labelled = zip((slot.label for slot in slots), present, strict=True)
    magnitudes = {label: part for label, part in labelled if "lora_magnitude_vector" in label}
    return draw_without_base(slots, config.init_lora_weights, start, magnitudes)
