"""A trained tensor as initial value + scale * tau, so that one learning rate suits every kind of
parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpeft.core.quantize import quantize


class Folded(nn.Module):
    """value = initial + scale * tau, with tau = 0 at first; with `bits`, tau (n,) is rounded to so
    many bits.

    Under Adam this equals a learning rate multiplied by `scale`. Small gradients are raised above
    Adam's eps, and weight decay pulls the value to its initial value instead of 0. Only tau is
    stored; the initial value is drawn again. A frozen value (`trained=False`) has no tau.
    """

    start: Tensor
    tau: nn.Parameter | None

    def __init__(
        self, initial: Tensor, scale: float, *, bits: int | None = None, trained: bool = True
    ) -> None:
        super().__init__()
        self.scale = scale
        self.bits = bits
        self.register_buffer("start", initial, persistent=False)
        # not by register_parameter: inside accelerate's init_empty_weights, which PEFT uses, that
        # would create it on the meta device
        self._parameters["tau"] = nn.Parameter(torch.zeros_like(initial)) if trained else None

    def forward(self, *, initial: bool = False) -> Tensor:
        """The value, same shape as the initial value, which is returned if `initial`."""
        tau: Tensor | None = self.tau  # a plain tensor, if another generator fills this one
        if initial or tau is None:
            return self.start
        if self.bits is not None:
            tau = quantize(tau, self.bits)
        return torch.add(self.start, tau, alpha=self.scale)
