"""What is diagnosed: a trained adapter, or a config with its initial values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.core.generator import CircuitModule, Generator
from qpeft.diagnostics.adapter import SavedAdapter, read_adapter
from qpeft.errors import ConfigError, setting
from qpeft.methods.planning import Plan
from qpeft.methods.registry import get, records


@dataclass(frozen=True)
class Circuit:
    """A circuit that starts in |0...0>: its initial and present angles of `ansatz.angle_shape`, float64, radians."""

    ansatz: Ansatz
    start: Tensor
    angles: Tensor

    @property
    def is_moved(self) -> bool:
        return not torch.equal(self.start, self.angles)


@dataclass(frozen=True)
class Target:
    """`saved` is the trained adapter, `run` the run folder that contains it; each may be None, as the generator.

    `number` counts from 1; it chooses one of several circuits, and `with_circuit` changes it.
    """

    name: str
    method: str  # key of `qpeft train`
    generator: Generator | None = field(repr=False)
    saved: SavedAdapter | None = field(default=None, repr=False)
    run: Path | None = None
    number: int = 1

    @property
    def circuit(self) -> Circuit | None:
        """The generator's circuit, of several the one that `number` chooses; None if it has none."""
        if (module := self._module) is None:
            return None
        start, angles = (module.angles(initial=initial).detach().double() for initial in (True, False))
        shape, chosen = (module.n_circuits, *module.ansatz.angle_shape), self.number - 1
        return Circuit(module.ansatz, start.view(shape)[chosen], angles.view(shape)[chosen])

    @property
    def n_circuits(self) -> int:
        """How many circuits of the same ansatz the generator has, each with its own angles."""
        return 0 if self._module is None else self._module.n_circuits

    @property
    def which(self) -> str:
        """Which of several circuits `circuit` is: "2 of 3"; empty for one."""
        return f"{self.number} of {self.n_circuits}" if self.n_circuits > 1 else ""

    def with_circuit(self, number: int) -> Target:
        """This target with its circuit `number`, counted from 1.

        Raises ConfigError if there are fewer circuits.
        """
        if not 1 <= number <= max(1, self.n_circuits):
            most = self.n_circuits
            found = f"{self.name} has {most} circuit{'' if most == 1 else 's'}" if most else self.no_circuit
            allowed = f"; choose one from 1 to {most}" if most > 1 else "; leave it out"
            raise ConfigError(f"{setting('circuit')}={number}: {found}{allowed}")
        return replace(self, number=number)

    @property
    def _module(self) -> CircuitModule | None:
        modules = () if self.generator is None else self.generator.modules()
        return next((module for module in modules if isinstance(module, CircuitModule)), None)

    @property
    def no_circuit(self) -> str:
        """Why `circuit` is None."""
        of = f"this adapter of method {self.method}" if self.generator is not None else f"method {self.method}"
        return f"{of} has no circuit whose probabilities are read from |0...0>"


def of_folder(adapter: str | Path, run: str | Path | None = None, name: str | None = None) -> Target:
    """The adapter in the folder `adapter`, which may belong to the run folder `run`; `name` is shown to readers.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: No measurement applies to this kind of adapter.
    """
    inside = Path(adapter) / "adapter"
    saved = read_adapter(inside if inside.is_dir() else adapter)
    return Target(name or str(adapter), saved.method, saved.generator, saved, None if run is None else Path(run))


def of_config(config: Any, plan: Plan, name: str) -> Target:
    """A config with its initial values.

    Args:
        config: The PEFT config, or the GeneratorConfig of a generator over another host.
        plan: The result of `qpeft.plan` for it: the circuit's size depends on the base.
        name: Shown to readers.

    Raises:
        ConfigError: A method without measurements before training.
    """
    generator = get(plan.method).ask("untrained", config, plan)
    if generator is None:
        others = " or ".join(record.key for record in records() if record.untrained is not None)
        raise ConfigError(
            f"a config of method {plan.method} has nothing to diagnose before it is trained: give the folder of a "
            f"trained adapter, or --method {others}"
        )
    return Target(name, plan.method, generator)
