"""QAA (arXiv 2509.16244), and QCHFT: features from a circuit whose initial state is a layer's
input.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option
from qpeft.circuits.ansatz import AMPLITUDE_ANSATZE
from qpeft.methods.method import Method

ANGLE_SCALE = 10.0  # angle = initial value + ANGLE_SCALE * trained value
METHOD = Method(
    key="qaa",
    title="QAA (arXiv 2509.16244)",
    config="qpeft.methods.qaa.model:QAAConfig",  # finds the query and value projections itself
    tuner="qpeft.methods.qaa.model:QAAModel",
    kind="quantum",
    learning_rate=0.02,
    options="qpeft.methods.qaa:QAASettings",
    angle_scale=ANGLE_SCALE,
)
FEATURE_SOURCES = ("qnn", "quadratic", "linear", "givens", "none")


@dataclass(kw_only=True)
class QAASettings:
    """QAA's features of the input of a linear map, and the adapted outputs; importable without
    torch.
    """

    n_layers: int = option(1, "Circuit layers L, at most 8.", at_least=1, at_most=8)
    ansatz: str = option(
        "square",
        "Gates of a layer: RY, RZ, ring of CNOTs, RY (square); RY, ring, a real circuit (qaa); RX,"
        " RY, RZ, ring (rxyz). Or blocks of L layers on pairs of qubits, QCHFT's: on neighbors"
        " (mps), or on all pairs.",
        choices=AMPLITUDE_ANSATZE,
    )
    readout: str = option(
        "z",
        "Features: Z of every qubit, with an offset (z), or of the last r qubits alone, as QCHFT"
        " (last_r).",
        choices=("z", "last_r"),
    )
    n_read: int = option(
        2,
        "Number r of the qubits that readout last_r reads.",
        at_least=1,
        used_with={"readout": ("last_r",)},
    )
    feature_source: str = option(
        "qnn",
        "Source of the features: the circuit (qnn) or a control: a fixed random orthogonal matrix"
        " (quadratic), random linear features (linear), as many trained Givens rotations as the"
        " circuit has angles (givens), or the offset without features (none). A control takes all"
        " settings of the circuit, also those that it does not use.",
        choices=FEATURE_SOURCES,
    )
    train_circuit: bool = option(True, "False is a control: the angles are not trained.")
    alpha: float = option(16.0, "The branch is multiplied by alpha / features.", above=0)
    carry_norm: bool = option(
        False,
        "Multiply features by ||x|| / sqrt(d); otherwise the branch does not depend on the norm"
        " of x.",
    )
    out_slices: list[list[int]] | None = option(
        None,
        "Adapted ranges [start, stop) of the output. Default: all; for GPT-2's c_attn queries and"
        " values.",
    )
    seed: int = option(0, "Seed of the initial angles, or of a control's values.", at_least=0)
