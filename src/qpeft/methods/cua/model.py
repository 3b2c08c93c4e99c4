"""CUA, Cayley unitary adapters (arXiv 2605.05914), as a PEFT tuner: our interpretation of public
summaries.

A vector of width d is cut into d / b blocks, each of which is rotated by a matrix of its own:

    Q_i = cay(K_i / 2)    K_i = skew(k_i), k_i (b(b-1)/2,) initially 0    Q = diag(Q_1, .., Q_m, I)
    linear      g(x) = Q x                      magnitude   g(x) = sign(x) |Q x|, elementwise
    input       y = W0 g(x) + b0                output      y = g(W0 x) + b0

On hardware a block is the amplitudes of q = log2 b qubits. With the linear readout on the input
side CUA is equal to OFT with blocks of b and the exact Cayley transform, as which it is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpeft.circuits.cayley import cayley_change, skew
from qpeft.core.config import OwnTunerConfig
from qpeft.core.folded import Folded
from qpeft.core.rotation import Rotation, RotationTuner, rotated_width
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.cua import CUASettings


@dataclass
class CUAConfig(CUASettings, OwnTunerConfig):
    """CUA of linear maps, by default of all but the output head.

    Each has d (b - 1) / 2 parameters in radians, float32, for the width d of its input, or of its
    output. The last values that fill no block are not rotated; with such values on the input no OFT
    is equal.

    With block-diagonal rotations Q, the Cayley transforms of skew matrices::

        y = W0 (Q x)    side input        y = Q (W0 x)    side output

    Not if PEFT's OFT will do: with readout linear on the input it is the same adapter.

    Example::

        model = get_peft_model(base, CUAConfig(block_size=4, target_modules=["v_proj"], task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range; on the model, a block does not fit a width.
    """

    method_name = "QPEFT_CUA"


class CUARotation(Rotation):
    """g(x) - x; `angles` are k, (m, b(b-1)/2)."""

    def __init__(
        self, settings: CUASettings, name: str, shape: tuple[int, int], init: SeededInit
    ) -> None:
        width = rotated_width(settings, "block_size", name, shape)
        super().__init__(settings.side, settings, width)
        self.size = settings.block_size
        self.is_linear = settings.readout == "linear"
        # probabilities lack the signs of the linear readout
        if not self.is_linear and self.size.bit_count() == 1:
            self.n_qubits = self.size.bit_length() - 1
        zeros = torch.zeros(width // self.size, self.size * (self.size - 1) // 2)
        self.angles = Folded(zeros, 1.0)

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        return [cayley_change(skew(self.angles().to(dtype) / 2))]

    def change(self, x: Tensor) -> Tensor:
        if self.measure is not None:
            n_rotated = len(self.angles.start) * self.size
            slices = x[..., :n_rotated].unflatten(-1, (-1, self.size))  # (..., m, b)
            (blocks,) = self.parts(x.dtype)
            squares = self.measure(slices, None, blocks + torch.eye(self.size).to(x))
            rest = x[..., n_rotated:]
            magnitudes = torch.cat([squares.sqrt().flatten(-2), rest.abs()], -1)  # (..., d)
            return x.sign() * magnitudes - x
        change = super().change(x)
        return change if self.is_linear else x.sign() * (x + change).abs() - x


class CUAModel(RotationTuner):
    """The tuner that PEFT builds for a CUAConfig."""

    adapter_class = CUARotation
