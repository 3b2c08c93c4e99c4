"""How far training moved the angles of the circuits from their seeded start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from qpeft.diagnostics.figure import Figure
from qpeft.diagnostics.saved_adapter import check_keeps_start, read_adapter
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.qaa.features import CircuitFeatures
from qpeft.methods.qpa.features import CircuitFeature
from qpeft.methods.quantum_peft.factors import PauliBank

STILL = 0.01  # radians: an angle that moved less has not moved to speak of
_FROZEN = 0.9  # share of still angles from which the circuit is practically frozen


@dataclass(frozen=True)
class AngleMovement(Figure):
    """The distance of every trained angle from its start, in radians."""

    n_angles: int
    mean: float
    maximum: float
    still_share: float  # of the angles that moved less than 0.01 rad
    values: tuple[float, ...] = field(repr=False)  # a number for each angle

    @property
    def is_frozen(self) -> bool:
        """Whether nine angles in ten stand still."""
        return self.still_share >= _FROZEN

    @property
    def sentence(self) -> str:
        if self.maximum == 0:
            return f"None of the {self.n_angles:,} angles moved: the circuit is where its seed put it."
        moved = f"The {self.n_angles:,} angles moved by {self.mean:.2g} rad in the mean, at most {self.maximum:.2g} rad"
        end = ": the circuit is practically frozen" if self.is_frozen else ""
        return f"{moved}; {self.still_share:.0%} of them moved less than {STILL:g} rad{end}."


def angle_movement(adapter: nn.Module | str | Path) -> AngleMovement:
    """How far the trained angles of QPA, Quantum-PEFT (family pauli) or QAA are from their start.

    An angle is start + scale * tau and a compact adapter holds tau, so a folder is enough: no base model is read.

    Args:
        adapter: A PeftModel, or a compact adapter folder.

    Raises:
        ConfigError: no circuit has angles that are trained as a distance from their start.
        CheckpointError: the folder is damaged, or no adapter.
    """
    moves = _of_model(adapter) if isinstance(adapter, nn.Module) else read_adapter(adapter).angle_moves()
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


def _of_model(model: nn.Module) -> list[Tensor]:
    moves = []
    for module in model.modules():
        if isinstance(module, PauliBank):
            check_keeps_start(module.config)
            folded = module.numbers
        elif isinstance(module, (CircuitFeature, CircuitFeatures)):
            folded = module.angles
        else:
            continue
        if folded.tau is not None:
            moves.append(folded.scale * folded.tau)
    if not moves:
        raise ConfigError("the model has no circuit whose angles are trained, so there is no movement to tell")
    return moves
