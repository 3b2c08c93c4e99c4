"""QuIC adapters (arXiv 2502.06916) as a PEFT tuner.

A vector of width d is cut into N blocks of beta = floor(d / N) values. Each block is rotated by the
compounds of a small orthogonal matrix A_i, which has the parameters; n is the largest width whose
compounds fit:

    C_k(A)[I, J] = det A[I, J]    I, J the k-subsets of 0..n-1           sum over k <= K of binom(n, k) <= beta
    A_i = cay(skew(s_i)), s_i (n(n-1)/2,) initially 0                    C = diag over i of (A_i, .., C_K(A_i), I)
    input    y = W0 (C x) + b0                                           output    y = C^T (W0 x) + b0

A circuit of RBS gates on neighbours of n wires multiplies states with k excitations by C_k. On the
input side QuIC is exported as an OFT with N blocks and the exact Cayley transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.cayley import cayley_change, skew
from qpeft.core.config import OwnTunerConfig
from qpeft.core.folded import Folded
from qpeft.core.rotation import Rotation, RotationTuner, rotated_width
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.quic import QuICSettings
from qpeft.methods.quic.compound import butterfly, compounds, pyramid, rotations


@dataclass
class QuICConfig(QuICSettings, OwnTunerConfig):
    """QuIC of linear maps, by default of all but the output head.

    Each has N n(n-1)/2 parameters in radians, float32, or N (n/2) log2 n with base butterfly. The
    last values that fill no block are not rotated; with such values on the input no OFT is equal.

    Example::

        model = get_peft_model(base, QuICConfig(n_blocks=4, order=2, task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range; on the model, N exceeds a width, or no order fits
            its blocks.
    """

    method_name = "QPEFT_QUIC"


class QuICRotation(Rotation):
    """C - I, or its transpose on the output side; `angles` are s, or the gates' angles, (N,
    n(n-1)/2).

    With multiplier random, C_k is cay(skew(E_k s)) for k > 1. Each row of E_k has one Gaussian
    entry at a random place, of a variance with which C_k changes as much as the compound near the
    identity.
    """

    def __init__(
        self, settings: QuICSettings, name: str, shape: tuple[int, int], init: SeededInit
    ) -> None:
        width = rotated_width(settings, "n_blocks", name, shape)
        self.settings, self.size, order = settings, width // settings.n_blocks, settings.order
        is_butterfly = settings.base == "butterfly"
        widths = (
            [2**i for i in range(1, self.size.bit_length())]
            if is_butterfly
            else range(2, self.size + 1)
        )
        n = max(
            (n for n in widths if sum(comb(n, k) for k in range(1, order + 1)) <= self.size),
            default=0,
        )
        if n < max(order, 2):
            raise ConfigError(
                f"order={order} does not fit blocks of {self.size} values, which hold the compounds"
                f" of a matrix of width {n}; choose a lower order or fewer blocks"
            )
        self.n, self.gates = n, butterfly(n) if is_butterfly else pyramid(n)
        count, drawn = len(self.gates), []  # also of Cayley parameters
        for k in range(2, order + 1) if settings.multiplier == "random" else ():
            n_entries = comb(comb(n, k), 2)
            std = (count * comb(n - 2, k - 1) / max(n_entries, 1)) ** 0.5
            place = (
                init.uniform(f"quic.{n}.{k}.place", (n_entries,), 1.0).add(1).mul(count / 2).long()
            )
            drawn.append(
                (place.clamp(0, count - 1), init.normal(f"quic.{n}.{k}.weight", (n_entries,), std))
            )
        super().__init__(settings.side, settings, width, init.hexdigest())
        for k, (place, weight) in enumerate(drawn, 2):
            self.register_buffer(f"place_{k}", place, persistent=False)
            self.register_buffer(f"weight_{k}", weight, persistent=False)
        self.angles = Folded(torch.zeros(settings.n_blocks, count), 1.0)

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        s, order = self.angles().to(dtype), self.settings.order
        eye = torch.eye(self.n, dtype=dtype, device=s.device)
        found = [
            (
                cayley_change(skew(s))
                if self.settings.base == "cayley"
                else rotations(s, self.gates, self.n) - eye
            )
        ]
        if self.settings.multiplier == "random":
            maps = [
                (self.get_buffer(f"place_{k}"), self.get_buffer(f"weight_{k}"))
                for k in range(2, order + 1)
            ]
            found += [cayley_change(skew(s[:, place] * weight.to(dtype))) for place, weight in maps]
        else:
            higher = compounds(found[0] + eye, order)[1:]
            found += [c - torch.eye(c.shape[-1], dtype=dtype, device=s.device) for c in higher]
        return [part.mT for part in found] if self.side == "output" else found


class QuICModel(RotationTuner):
    """The tuner that PEFT builds for a QuICConfig."""

    adapter_class = QuICRotation

    def plan_sizes(self) -> dict[str, Any]:
        return {"n_wires": max(m.n for m in self.modules() if isinstance(m, QuICRotation))}
