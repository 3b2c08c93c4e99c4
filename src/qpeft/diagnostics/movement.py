"""How far training moved the angles of the circuits from their seeded initial values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.core.config import GeneratedConfig
from qpeft.core.generator_holder import holder_of
from qpeft.diagnostics.adapter import read_adapter
from qpeft.diagnostics.finding import Measurement
from qpeft.errors import CheckpointError, ConfigError

STILL = 0.01  # radians: an angle that moved less counts as still
_FROZEN = 0.9  # fraction of still angles from which the circuit counts as practically frozen


@dataclass(frozen=True)
class AngleMovement(Measurement):
    """The distance of every trained angle from its initial value, in radians."""

    n_angles: int
    mean: float
    maximum: float
    still_share: float  # of the angles that moved less than 0.01 rad
    values: tuple[float, ...] = field(repr=False)  # one per angle

    @property
    def is_frozen(self) -> bool:
        """Whether at least nine angles in ten are still."""
        return self.still_share >= _FROZEN

    @property
    def sentence(self) -> str:
        if self.maximum == 0:
            return f"None of the {self.n_angles:,} angles moved from its initial value."
        moved = f"The {self.n_angles:,} angles moved by {self.mean:.2g} rad on average, at most {self.maximum:.2g} rad"
        end = ": the circuit is practically frozen" if self.is_frozen else ""
        return f"{moved}; {self.still_share:.0%} of them moved less than {STILL:g} rad{end}."


def angle_movement(adapter: nn.Module | str | Path) -> AngleMovement:
    """How far the trained angles of QPA, Quantum-PEFT (family pauli) or QAA are from their initial values.

    An angle is initial value + scale * tau and a compact checkpoint stores tau, so a folder is enough: no weights of a
    base model are read.

    Args:
        adapter: A PeftModel, or a compact checkpoint's folder.

    Raises:
        ConfigError: No circuit has angles that are trained as a distance from their initial values.
        CheckpointError: The folder is damaged, or not an adapter.
    """
    if isinstance(adapter, nn.Module):
        moves = _moves(_configs_of(adapter), dict(adapter.named_parameters()))
    else:
        saved = read_adapter(adapter)
        moves = _moves([saved.config], saved.trained())
    values = torch.cat([move.detach().double().flatten().abs().cpu() for move in moves])
    if not torch.isfinite(values).all():
        raise CheckpointError("an angle is NaN or Inf; use an earlier checkpoint")
    return AngleMovement(
        n_angles=values.numel(),
        mean=values.mean().item(),
        maximum=values.max().item(),
        still_share=(values < STILL).double().mean().item(),
        values=tuple(values.tolist()),
    )


def _configs_of(model: Any) -> list[Any]:
    """The config of each adapter of a PeftModel, with the generator attached to it."""
    holder, configs = holder_of(model), dict(getattr(model, "peft_config", {}))
    if holder is not None:
        configs |= {name: holder.generated_config(name) for name in holder.generators}
    return list(configs.values())


def _moves(configs: Iterable[Any], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """scale * tau of every trained circuit, in radians."""
    settings = [config.to_generator() if isinstance(config, GeneratedConfig) else config for config in configs]
    found = dict(own.trained_angles() for own in settings if hasattr(own, "trained_angles"))
    if not found:
        raise ConfigError("the adapter has no circuit whose angles are trained, so there is no movement to measure")
    moves = [scale * t.float() for end, scale in found.items() for name, t in tensors.items() if name.endswith(end)]
    if not moves:
        raise CheckpointError("the adapter's tensors lack the angles that its config describes; restore both files")
    return moves
