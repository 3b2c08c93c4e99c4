"""The same generator from another seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpeft.core.binding import Slot
from qpeft.core.generator import Generator
from qpeft.core.seeded_init import SeededInit


def redraw(generator: Generator, slots: Sequence[Slot], config: Any) -> Generator:
    """A generator like `generator`, with the initial values of `config.seed`; nothing of it is trained.

    Args:
        generator: What is made anew.
        slots: The tensors that it fills, in its order.
        config: Its settings, with the other seed.

    Raises:
        CheckpointError: the config names other initial values than this seed's.
        ConfigError: a kind of generator that cannot be drawn again.
    """
    init = SeededInit(config.seed)
    made = generator.redrawn(slots, config, init)
    config.check_start(init.hexdigest())
    return made.to(next(generator.buffers()).device)
