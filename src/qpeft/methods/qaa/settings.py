"""The settings of QAA's branch: plain data, checked at once, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from qpeft.checks import check_fields
from qpeft.errors import ConfigError

ANSATZE = ("square", "qaa", "rxyz")
READOUTS = ("z", "probs")
FEATURE_SOURCES = ("qnn", "quadratic", "linear", "givens", "none")
MOST_LAYERS = 8
ANGLE_SCALE = 10.0  # angle = initial value + ANGLE_SCALE * trained value: angles learn ten times as fast as V


def _help(text: str, **metadata: Any) -> dict[str, Any]:
    return {"help": text, **metadata}


@dataclass(kw_only=True)
class QAASettings:
    """What QAA adds to the output of a linear map: features of its input, and where they go."""

    n_layers: int = field(default=1, metadata=_help("Circuit layers L, at most 8.", at_least=1, at_most=MOST_LAYERS))
    ansatz: str = field(
        default="square",
        metadata=_help(
            "Gates of a layer: RY, RZ, ring of CNOTs, RY (square); RY, ring, a real circuit (qaa); RX, RY, RZ, ring "
            "(rxyz).",
            choices=ANSATZE,
        ),
    )
    readout: str = field(
        default="z",
        metadata=_help(
            "Features: the expectation of Z on each qubit (z), or the probability of every basis state (probs), which "
            "trains as many parameters as the weight has, or more.",
            choices=READOUTS,
        ),
    )
    feature_source: str = field(
        default="qnn",
        metadata=_help(
            "Where features come from: the circuit (qnn) or a control: a fixed random orthogonal matrix in the "
            "circuit's place (quadratic), random linear features (linear), trained Givens rotations, as many as the "
            "circuit has angles (givens), or no features, the offset alone (none).",
            choices=FEATURE_SOURCES,
        ),
    )
    train_circuit: bool = field(default=True, metadata=_help("False is a control: the angles stay as drawn."))
    share_circuit: bool = field(
        default=False, metadata=_help("One set of angles for all modules of the same input width.")
    )
    alpha: float = field(default=16.0, metadata=_help("The branch is multiplied by alpha / qubits.", above=0))
    carry_norm: bool = field(
        default=False,
        metadata=_help("Multiply features by ||x|| / sqrt(d): without it the branch does not see how large x is."),
    )
    use_offset: bool = field(default=True, metadata=_help("Train an offset c beside V."))
    out_slices: list[list[int]] | None = field(
        default=None,
        metadata=_help(
            "Ranges [start, stop) of the output that are written. Default: all; of GPT-2's c_attn queries and values."
        ),
    )
    allow_large: bool = field(
        default=False, metadata=_help("Allow readout probs to train more parameters than the full weight has.")
    )
    seed: int = field(default=0, metadata=_help("Seed of the angles' start, or of what a control draws.", at_least=0))

    def trained_angles(self) -> tuple[str, float]:
        """The end of the parameter names of the trained angles, and their factor: angle = initial + factor * value.

        Raises ConfigError if no angles are trained.
        """
        if self.feature_source != "qnn" or not self.train_circuit:
            raise ConfigError("this QAA adapter has no circuit whose angles are trained")
        return ".angles.tau", ANGLE_SCALE

    def check(self) -> None:
        """Raise ConfigError, naming the field and what is allowed, if a setting is out of range."""
        check_fields(self, QAASettings)
        self.alpha = float(self.alpha)  # 16 and 16.0 are one setting
        if self.feature_source == "none" and not self.use_offset:
            raise ConfigError("feature_source='none' trains the offset alone, and use_offset=False leaves it out")
        if self.out_slices is not None:
            self.out_slices = _checked_slices(self.out_slices)


def _checked_slices(slices: Any) -> list[list[int]]:
    """As lists of whole numbers, in order and without overlap."""
    try:
        pairs = [[start, stop] for start, stop in slices]
        in_order = all(isinstance(end, int) for pair in pairs for end in pair) and all(a < b for a, b in pairs)
    except (TypeError, ValueError):
        pairs, in_order = [], False
    if not pairs or not in_order or any(a[1] > b[0] for a, b in pairwise(pairs)):
        raise ConfigError(
            f"out_slices must be ranges such as [[0, 768], [1536, 2304]], in order and without overlap, got {slices}"
        )
    return pairs
