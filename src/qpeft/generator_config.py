"""What every generator's settings have in common; free of torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from qpeft.circuits import Ansatz
    from qpeft.core.generator import Generator
    from qpeft.core.seeded_init import SeededInit


class GeneratorConfig:
    """Settings of a generator that `qpeft.attach` puts over a stock adapter.

    A subclass is a dataclass whose fields JSON can hold, checked in `__post_init__`. It makes the generator, and it is
    all that a compact folder knows of it.
    """

    seed: int = 0  # of whatever `make` draws
    vector_order = "peft"  # in which order the adapter's tensors follow each other

    def make(self, initial: Tensor, start: SeededInit) -> Generator:
        """The generator of one adapter.

        Args:
            initial: The adapter's own start, drawn by PEFT: flat (P,), float32, on the CPU. A generator that starts
                there keeps it in its state dict, for nobody can draw it again.
            start: Where all else is drawn from, so that a folder need not hold it.
        """
        raise NotImplementedError

    def circuit(self, n_qubits: int) -> tuple[Ansatz, bool] | None:
        """The circuit whose probabilities a backend can supply, and whether its angles are trained; None without."""
        return None

    def settings(self) -> dict[str, Any]:
        """Every field by its name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def description(self) -> dict[str, Any]:
        """For model cards: the "method", and the settings that matter."""
        return {"method": type(self).__name__, **self.settings()}
