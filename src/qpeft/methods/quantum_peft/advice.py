"""What a training run of Quantum-PEFT should be warned of."""

from __future__ import annotations

from typing import Any


def angles_hardly_move(settings: Any, config: Any) -> str | None:
    """A warning if learning rate and steps leave the angles about where they begin.

    Adam moves an angle by at most about angle_scale * lr per step, and lr falls linearly to 0.
    """
    if config.family != "pauli" or config.freeze_angles or config.frame == "gradient":
        return None  # in the gradient's own directions a short distance is enough
    distance = settings.steps * settings.lr * config.angle_scale / 2
    if distance >= 2:
        return None
    return (
        f"angles can hardly move: at most {distance:.2g} radians in {settings.steps} steps, and several are wanted; "
        "raise the learning rate, the steps or angle_scale"
    )
