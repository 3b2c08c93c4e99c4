"""What is diagnosed: a trained adapter, or a config with its initial values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.core.seeded_init import SeededInit
from qpeft.diagnostics.adapter import SavedAdapter, quietly, read_adapter
from qpeft.errors import ConfigError
from qpeft.methods.planning import Plan
from qpeft.methods.qpa.features import CircuitFeature
from qpeft.methods.qpa.generator import QPAGenerator, QPAGeneratorConfig


@dataclass(frozen=True)
class Circuit:
    """QPA's circuit: its initial and present angles (L, N), float64, radians."""

    ansatz: Ansatz
    start: Tensor
    angles: Tensor

    @property
    def is_moved(self) -> bool:
        return not torch.equal(self.start, self.angles)


@dataclass(frozen=True)
class Target:
    """`generator` is QPA's, `saved` the trained adapter, `run` the run folder that contains it; each may be None."""

    name: str
    method: str  # key of `qpeft train`
    generator: QPAGenerator | None = dataclasses.field(repr=False)
    saved: SavedAdapter | None = dataclasses.field(default=None, repr=False)
    run: Path | None = None

    @property
    def circuit(self) -> Circuit | None:
        """QPA's circuit; None if the method reads no probabilities of a circuit."""
        feature = None if self.generator is None else self.generator.feature
        if not isinstance(feature, CircuitFeature):
            return None
        start, angles = (feature.angles(initial=is_start).detach().double() for is_start in (True, False))
        n_layers, n_qubits = start.shape
        return Circuit(Ansatz("ry_ladder", n_qubits, n_layers), start, angles)

    @property
    def no_circuit(self) -> str:
        """Why `circuit` is None."""
        if self.generator is not None:
            return f"feature_source {self.generator.config.feature_source} has no circuit"
        return f"method {self.method} has no circuit whose probabilities are read from |0...0>"


def of_folder(adapter: str | Path, run: str | Path | None = None, name: str | None = None) -> Target:
    """The adapter in the folder `adapter`, which may belong to the run folder `run`; `name` is shown to readers.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: No measurement applies to this kind of adapter.
    """
    inside = Path(adapter) / "adapter"
    saved = read_adapter(inside if inside.is_dir() else adapter)
    generator = saved.generator if isinstance(saved.generator, QPAGenerator) else None
    return Target(name or str(adapter), saved.method, generator, saved, None if run is None else Path(run))


def of_config(config: Any, plan: Plan, name: str) -> Target:
    """A config of QPA with its initial values.

    Args:
        config: A QPAConfig, or the QPAGeneratorConfig of a generator over another host.
        plan: The result of `qpeft.plan` for it: the circuit's size depends on the base.
        name: Shown to readers.

    Raises:
        ConfigError: A method without measurements before training.
    """
    if not isinstance(config, QPAGeneratorConfig) or plan.n_chunks is None or plan.chunk_size is None:
        raise ConfigError(
            f"a config of method {plan.method} has nothing to diagnose before it is trained: give the folder of a "
            "trained adapter, or --method qpa"
        )
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(QPAGeneratorConfig)}
    counted = {"budget": None, "chunk_size": plan.chunk_size, "hidden": plan.hidden}
    m = plan.n_chunks * plan.chunk_size  # whole chunks
    start = SeededInit(config.seed)
    generator = quietly(QPAGenerator, QPAGeneratorConfig(**{**settings, **counted}), torch.zeros(m), start)
    return Target(name, plan.method, generator)
