"""The base class of generator configurations, importable without torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from qpeft.core.generator import Generator
    from qpeft.core.seeded_init import SeededInit


class GeneratorConfig:
    """Configuration of a generator for `qpeft.attach`.

    A subclass is a dataclass with JSON-serializable fields, validated in `__post_init__`. It creates the generator. A
    compact checkpoint stores the fields.
    """

    seed: int = 0  # of the values drawn by `make`
    vector_order = "peft"  # order of the adapter's tensors

    def make(self, initial: Tensor, init: SeededInit) -> Generator:
        """The generator of one adapter.

        Args:
            initial: The adapter's initial values, drawn by PEFT: flat (P,), float32, on the CPU. A generator that uses
                them keeps them in its state dict, because they cannot be drawn again.
            init: Draws all other values from the seed, so that they need not be saved.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Every field by its name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def description(self) -> dict[str, Any]:
        """The "method" and the settings that matter, for model cards."""
        return {"method": type(self).__name__, **self.settings()}
