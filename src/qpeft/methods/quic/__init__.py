"""QuIC adapters (arXiv 2502.06916): rotations by compound matrices, which a circuit that keeps
excitations computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option
from qpeft.methods.method import Method

METHOD = Method(
    key="quic",
    title="QuIC (arXiv 2502.06916)",
    config="qpeft.methods.quic.model:QuICConfig",
    tuner="qpeft.methods.quic.model:QuICModel",
    kind="quantum",
    learning_rate=6e-3,
    options="qpeft.methods.quic:QuICSettings",
)


@dataclass(kw_only=True)
class QuICSettings:
    """The blocks, orders and small matrix of QuIC; importable without torch."""

    n_blocks: int = option(4, "Blocks N, with parameters of their own.", at_least=1, at_most=65_536)
    order: int = option(
        2,
        "Largest order K: a block is the compounds of orders 1 to K. 1 is CUA, or OFT.",
        at_least=1,
        at_most=6,
    )
    base: str = option(
        "cayley",
        "The small matrix: a Cayley transform, or the product of rotations of pairs of wires in a"
        " pyramid of neighbors or in a butterfly.",
        choices=("cayley", "pyramid", "butterfly"),
    )
    side: str = option(
        "input", "Rotate the input or the output of a linear map.", choices=("input", "output")
    )
    multiplier: str = option(
        "compound",
        "compound, or random, a control: Cayley transforms of fixed random linear maps of the same"
        " parameters.",
        choices=("compound", "random"),
        used_with={"order": (2, 3, 4, 5, 6)},
    )
    seed: int = option(0, "Seed of the maps of multiplier random.", at_least=0)
