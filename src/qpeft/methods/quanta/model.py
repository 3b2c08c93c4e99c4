"""QuanTA, quantum-informed tensor adaptation (arXiv 2406.00132), as a PEFT tuner.

The input x is reshaped to axes n_1 .. n_M, as the qudits of a register, and a matrix is applied to
each pair of axes:

    y = W0 x + b0 + (T - S) x        T the product of the gates, the first one rightmost; S is T before training

Gates act on the pairs (M, M-1), (M, M-2), .., (M, 1), (M-1, M-2), .. in this order; each is (n_b
n_a, n_b n_a) with the index of the axis nearer to the end, a, running fastest. x is padded with
zeros, and the output is cut. W0 is not changed. Two controls have other T on the same axes: one
gate for each axis (kron), and a tensor train whose last core is initially 0 (mpo):

    T[(i_1..i_M), (j_1..j_M)] = G_1[1, i_1, j_1, :] G_2[:, i_2, j_2, :] .. G_M[:, i_M, j_M, 1]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qpeft.checks import MOST
from qpeft.circuits.numerics import apply_gates
from qpeft.core.config import OwnTunerConfig
from qpeft.core.folded import Folded
from qpeft.core.linear_tuner import LinearAdapter, LinearTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.quanta import QuanTASettings

_PUBLISHED = {4096: (16, 8, 8, 4)}  # of the authors' scripts
_FEW = 1024  # the largest width of three axes


@dataclass
class QuanTAConfig(QuanTASettings, OwnTunerConfig):
    """QuanTA of linear maps, by default of all but the output head.

    Each has the sum of (n_a n_b)^2 over pairs of axes parameters, float32; of n_a^2 over axes with
    form kron; and of bond n_a^2 (twice, of inner axes bond^2 n_a^2) with mpo. Merging gives a dense
    change of full rank.

    Example::

        model = get_peft_model(base, QuanTAConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range; on the model, the axes have fewer places than a
            width.
    """

    method_name = "QPEFT_QUANTA"

    def __post_init__(self) -> None:
        super().__post_init__()  # which makes a list of a tuple
        if self.axes is None:
            return
        are_sizes = isinstance(self.axes, list) and all(type(n) is int and n > 1 for n in self.axes)
        if not are_sizes or len(self.axes) < 2 or prod(self.axes) > MOST:
            raise ConfigError(f"axes must be two or more whole numbers above 1, got {self.axes!r}")


@cache
def default_axes(width: int, n_axes: int) -> tuple[int, ...]:
    """Sizes of axes, largest first: similar, and at most a factor of 2 apart; of the next width
    that has such sizes.
    """
    if len(_PUBLISHED.get(width, ())) == n_axes:
        return _PUBLISHED[width]
    n = max(width, 2**n_axes)
    while True:
        found, rest = [], n
        for left in range(n_axes, 0, -1):
            found.append(next(a for a in range(1, rest + 1) if rest % a == 0 and a**left >= rest))
            rest //= found[-1]
        if max(found) <= 2 * min(found):
            return tuple(sorted(found, reverse=True))
        n += 1


def pairs(n_axes: int) -> list[tuple[int, int]]:
    """The axes (b, a) of each gate, counted from the end."""
    return [(-b, -a) for a in range(1, n_axes) for b in range(a + 1, n_axes + 1)]


def apply_mpo(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """The tensor train with cores (bond, o_k, d_k, next bond) applied to the last axes of x, (...,
    d_1, .., d_M).
    """
    bond = -len(cores) - 1
    y = x.unsqueeze(bond)  # (..., bond, d_k, .., d_M, o_1, .., o_(k-1))
    for core in cores:
        y = torch.einsum("...rd,rods->...os", y.movedim((bond, bond + 1), (-2, -1)), core).movedim(
            -1, bond
        )
    return y.squeeze(bond)


class QuanTABranch(LinearAdapter):
    """(T - S) x, or T x of a tensor train, for x (..., d), cut to `outputs` values."""

    def __init__(
        self, settings: QuanTASettings, name: str, shape: tuple[int, int], init: SeededInit
    ) -> None:
        (width, self.outputs), most, given = shape, max(shape), settings.axes
        if given and prod(given) < most:
            raise ConfigError(
                f"axes {given} have {prod(given):,} places, fewer than the {most:,} values of"
                f" {name}"
            )
        count = 3 if most <= _FEW else 4
        self.form, self.axes = settings.form, tuple(given or default_axes(most, count))
        if self.form == "mpo":
            outer = self.axes if given else default_axes(self.outputs, count)
            self.axes = self.axes if given else default_axes(width, count)
            bonds = [1, *[settings.bond] * (len(outer) - 1), 1]
            places = zip(bonds[:-1], outer, self.axes, bonds[1:], strict=True)
            drawn = [(s, (s[0] * s[2]) ** -0.5) for s in places]
            initial = [
                init.normal(f"{name}.quanta.{i}", s, scale) for i, (s, scale) in enumerate(drawn)
            ]
            initial[-1] = torch.zeros_like(initial[-1])
        else:
            n_axes = len(self.axes)
            self.pairs = (
                pairs(n_axes)
                if self.form == "gates"
                else [(axis - n_axes,) for axis in range(n_axes)]
            )
            sizes = [prod(self.axes[axis] for axis in pair) for pair in self.pairs]
            drawn = [((n, n), n**-0.5) for n in sizes]
            initial = [
                init.uniform(f"{name}.quanta.{i}", s, 3**0.5 * std)
                for i, (s, std) in enumerate(drawn)
            ]
        super().__init__("parallel", settings, shape, init.hexdigest())
        self.gates = nn.ModuleList(
            Folded(one, std) for one, (_, std) in zip(initial, drawn, strict=True)
        )

    def change(self, x: Tensor) -> Tensor:
        x = pad(x, (0, prod(self.axes) - x.shape[-1])).unflatten(-1, self.axes)
        y = self._apply_all(x, initial=False)
        if self.form != "mpo":
            y = y - self._apply_all(x, initial=True)
        return y.flatten(-len(self.axes))[..., : self.outputs]

    def _apply_all(self, x: Tensor, *, initial: bool) -> Tensor:
        gates = [gate(initial=initial).to(x.dtype) for gate in self.gates]
        return apply_mpo(x, gates) if self.form == "mpo" else apply_gates(x, gates, self.pairs)


class QuanTAModel(LinearTuner):
    """The tuner that PEFT builds for a QuanTAConfig."""

    adapter_class = QuanTABranch

    def plan_sizes(self) -> dict[str, Any]:
        return {
            "axes": list(
                max((m.axes for m in self.modules() if isinstance(m, QuanTABranch)), key=prod)
            )
        }
