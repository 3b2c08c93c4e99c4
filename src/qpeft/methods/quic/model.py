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
from qpeft.core.generator import as_index
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

    With the compounds C of small rotations A, C_k(A)[I, J] = det A[I, J]::

        y = W0 (C x)    side input        y = C^T (W0 x)    side output

    Not if PEFT's OFT will do: at order 1 it is the same adapter, and above it a step costs more.

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
        self.settings = settings
        self.size = width // settings.n_blocks
        order = settings.order
        is_butterfly = settings.base == "butterfly"
        widths = range(2, self.size + 1)
        if is_butterfly:
            widths = [2**i for i in range(1, self.size.bit_length())]
        fitting = [n for n in widths if sum(comb(n, k) for k in range(1, order + 1)) <= self.size]
        n = max(fitting, default=0)
        if n < max(order, 2):
            raise ConfigError(
                f"order={order} does not fit blocks of {self.size} values, which hold the compounds"
                f" of a matrix of width {n}; choose a lower order or fewer blocks"
            )
        self.n = n
        self.gates = butterfly(n) if is_butterfly else pyramid(n)
        count = len(self.gates)  # also of Cayley parameters
        drawn = []
        for k in range(2, order + 1) if settings.multiplier == "random" else ():
            n_entries = comb(comb(n, k), 2)
            std = (count * comb(n - 2, k - 1) / max(n_entries, 1)) ** 0.5
            uniform = init.uniform(f"quic.{n}.{k}.place", (n_entries,), 1.0)  # on [-1, 1)
            place = uniform.add(1).mul(count / 2).long().clamp(0, count - 1)
            weight = init.normal(f"quic.{n}.{k}.weight", (n_entries,), std)
            drawn.append((place, weight))
        super().__init__(settings.side, settings, width, init.hexdigest())
        for k, (place, weight) in enumerate(drawn, 2):
            self.register_buffer(f"place_{k}", place.float(), persistent=False)  # an index buffer
            self.register_buffer(f"weight_{k}", weight, persistent=False)
        self.angles = Folded(torch.zeros(settings.n_blocks, count), 1.0)

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        s = self.angles().to(dtype)  # (N, parameters)
        order = self.settings.order
        eye = torch.eye(self.n, dtype=dtype, device=s.device)
        is_cayley = self.settings.base == "cayley"
        base = cayley_change(skew(s)) if is_cayley else rotations(s, self.gates, self.n) - eye
        changes = [base]  # (N, n, n)
        if self.settings.multiplier == "random":
            for k in range(2, order + 1):
                place = as_index(self.get_buffer(f"place_{k}"))
                weight = self.get_buffer(f"weight_{k}").to(dtype)
                changes.append(cayley_change(skew(s[:, place] * weight)))
        else:
            higher = compounds(base + eye, order)[1:]
            changes += [c - torch.eye(c.shape[-1], dtype=dtype, device=s.device) for c in higher]
        return [change.mT for change in changes] if self.side == "output" else changes


class QuICModel(RotationTuner):
    """The tuner that PEFT builds for a QuICConfig."""

    adapter_class = QuICRotation

    def plan_sizes(self) -> dict[str, Any]:
        return {"n_wires": max(m.n for m in self.modules() if isinstance(m, QuICRotation))}
