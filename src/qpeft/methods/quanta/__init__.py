"""QuanTA (arXiv 2406.00132): gates on pairs of axes of the input, in parallel with a linear map."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option
from qpeft.methods.method import Method

METHOD = Method(
    key="quanta",
    title="QuanTA (arXiv 2406.00132)",
    config="qpeft.methods.quanta.model:QuanTAConfig",
    tuner="qpeft.methods.quanta.model:QuanTAModel",
    learning_rate=0.08,
    options="qpeft.methods.quanta:QuanTASettings",
)


@dataclass(kw_only=True)
class QuanTASettings:
    """The axes of QuanTA and what acts on them; importable without torch."""

    axes: list[int] | None = option(
        None,
        "Sizes of the axes, whose product is at least each width. Default: three or four of similar"
        " size.",
    )
    form: str = option(
        "gates",
        "A gate on each pair of axes (gates), or a control: one on each axis (kron), or a tensor"
        " train (mpo).",
        choices=("gates", "mpo", "kron"),
    )
    bond: int = option(
        4,
        "Bond dimension of form mpo.",
        at_least=1,
        at_most=4096,
        used_with={"form": ("mpo",)},
    )
    seed: int = option(0, "Seed of the initial gates.", at_least=0)
