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

    With gates T on pairs of axes of x, and S their initial value::

        y = W0 x + (T - S) x

    Not for a few hundred parameters: the gates of one map of width 128 have more. Not for a server of
    many adapters, which needs a low rank.

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
        sizes = []
        rest = n
        for left in range(n_axes, 0, -1):
            divisors = (a for a in range(1, rest + 1) if rest % a == 0)
            sizes.append(next(a for a in divisors if a**left >= rest))
            rest //= sizes[-1]
        if max(sizes) <= 2 * min(sizes):
            return tuple(sorted(sizes, reverse=True))
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
        bond_last = y.movedim((bond, bond + 1), (-2, -1))  # (..., bond, d_k)
        y = torch.einsum("...rd,rods->...os", bond_last, core).movedim(-1, bond)
    return y.squeeze(bond)


class QuanTABranch(LinearAdapter):
    """(T - S) x, or T x of a tensor train, for x (..., d), cut to `outputs` values."""

    def __init__(
        self, settings: QuanTASettings, name: str, shape: tuple[int, int], init: SeededInit
    ) -> None:
        width, self.outputs = shape
        most = max(shape)
        given = settings.axes
        if given and prod(given) < most:
            raise ConfigError(
                f"axes {given} have {prod(given):,} places, fewer than the {most:,} values of"
                f" {name}"
            )
        count = 3 if most <= _FEW else 4
        self.form = settings.form
        if self.form == "mpo":
            outer = tuple(given or default_axes(self.outputs, count))
            self.axes = tuple(given or default_axes(width, count))
            bonds = [1, *[settings.bond] * (len(outer) - 1), 1]
            shapes = list(zip(bonds[:-1], outer, self.axes, bonds[1:], strict=True))
            scales = [(bond * d) ** -0.5 for bond, _, d, _ in shapes]
            draw = init.normal
            factor = 1.0
        else:
            self.axes = tuple(given or default_axes(most, count))
            n_axes = len(self.axes)
            self.pairs = [(axis - n_axes,) for axis in range(n_axes)]
            if self.form == "gates":
                self.pairs = pairs(n_axes)
            sizes = [prod(self.axes[axis] for axis in pair) for pair in self.pairs]
            shapes = [(n, n) for n in sizes]
            scales = [n**-0.5 for n in sizes]
            draw = init.uniform
            factor = 3**0.5  # the bound of a uniform distribution by its deviation
        tensors = [
            draw(f"{name}.quanta.{i}", shape_, factor * scale)
            for i, (shape_, scale) in enumerate(zip(shapes, scales, strict=True))
        ]
        if self.form == "mpo":
            tensors[-1].zero_()  # so that the whole train is 0 before training
        super().__init__("parallel", settings, shape, init.hexdigest())
        self.gates = nn.ModuleList(map(Folded, tensors, scales))

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
        axes = [module.axes for module in self.modules() if isinstance(module, QuanTABranch)]
        return {"axes": list(max(axes, key=prod))}
