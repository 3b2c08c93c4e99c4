"""What every generator has in common: float32 always, and a compact state that is never read wrongly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class FullPrecision(nn.Module):
    """A module that follows the model to another device, but never to a lower precision: angles need float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            return fn(tensor) if probe.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(probe.device)

        return super()._apply(move, recurse)


class Generator(FullPrecision):
    """Few trained numbers in, the flat tensor (P,) of an adapter's numbers out: float32 and deterministic.

    A subclass supplies `forward()`, differentiable once, and a buffer `fingerprint` made by the function of this name.
    """

    fingerprint: Tensor
    needs_fit = False  # whether fit_frames must be called before training

    def __call__(self) -> Tensor:
        """The adapter's numbers, flat (P,), float32 whatever autocast says."""
        with torch.autocast(self.fingerprint.device.type, enabled=False):
            return super().__call__()

    def find_broken(self) -> str | None:
        """What the first trained number that is NaN or Inf belongs to; None if there is none."""
        return next((name for name, p in self.named_parameters() if not torch.isfinite(p).all()), None)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict as the compact folder stores it."""
        return state

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undo `pack`; a state that is not packed is returned as it is."""
        return state


def fingerprint(*parts: Any) -> Tensor:
    """SHA-256 of all that turns trained numbers into an adapter's, uint8 (32,).

    Saved beside them, so that they are never read with another start or other settings.
    """
    text = json.dumps(parts, sort_keys=True)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
