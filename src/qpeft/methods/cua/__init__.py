"""CUA, Cayley unitary adapters (arXiv 2605.05914): block-diagonal rotations in front of, or behind,
a linear map.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option
from qpeft.methods.method import Method

METHOD = Method(
    key="cua",
    title="CUA (arXiv 2605.05914)",
    config="qpeft.methods.cua.model:CUAConfig",
    tuner="qpeft.methods.cua.model:CUAModel",
    kind="quantum",
    learning_rate=0.06,
    options="qpeft.methods.cua:CUASettings",
)


@dataclass(kw_only=True)
class CUASettings:
    """The blocks of CUA's rotation and how it is read; importable without torch."""

    block_size: int = option(
        4,
        "Width b of a block, b(b-1)/2 parameters each; 2**q for q qubits.",
        at_least=2,
        at_most=4096,
    )
    side: str = option(
        "input", "Rotate the input or the output of a linear map.", choices=("input", "output")
    )
    readout: str = option(
        "linear",
        "linear: the rotated values. magnitude, which hardware measures: their absolute values with"
        " the signs of the values before the rotation.",
        choices=("linear", "magnitude"),
    )
