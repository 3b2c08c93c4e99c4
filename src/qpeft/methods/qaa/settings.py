"""The fields of QAA's configuration, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError, setting

ANSATZE = ("square", "qaa", "rxyz")
READOUTS = ("z", "probs")
FEATURE_SOURCES = ("qnn", "quadratic", "linear", "givens", "none")
MOST_LAYERS = 8
ANGLE_SCALE = 10.0  # angle = initial value + ANGLE_SCALE * trained value


@dataclass(kw_only=True)
class QAASettings:
    """The features that QAA computes from the input of a linear map, and the outputs to which it adds them."""

    n_layers: int = option(1, "Circuit layers L, at most 8.", at_least=1, at_most=MOST_LAYERS)
    ansatz: str = option(
        "square",
        "Gates of a layer: RY, RZ, ring of CNOTs, RY (square); RY, ring, a real circuit (qaa); RX, RY, RZ, ring "
        "(rxyz).",
        choices=ANSATZE,
    )
    readout: str = option(
        "z",
        "Features: the expectation of Z on each qubit (z), or the probability of every basis state (probs), with "
        "at least as many trainable parameters as the weight.",
        choices=READOUTS,
    )
    feature_source: str = option(
        "qnn",
        "Source of the features: the circuit (qnn) or a control: a fixed random orthogonal matrix (quadratic), "
        "random linear features (linear), as many trained Givens rotations as the circuit has angles (givens), or "
        "the offset without features (none).",
        choices=FEATURE_SOURCES,
    )
    train_circuit: bool = option(True, "False is a control: the angles are not trained.")
    share_circuit: bool = option(False, "One set of angles for all modules of the same input width.")
    alpha: float = option(16.0, "The branch is multiplied by alpha / qubits.", above=0)
    carry_norm: bool = option(
        False, "Multiply features by ||x|| / sqrt(d); otherwise the branch does not depend on the norm of x."
    )
    use_offset: bool = option(True, "Also train an offset c.")
    out_slices: list[list[int]] | None = option(
        None, "Adapted ranges [start, stop) of the output. Default: all; for GPT-2's c_attn queries and values."
    )
    allow_large: bool = option(False, "Allow readout probs to train more parameters than the full weight has.")
    seed: int = option(0, "Seed of the initial angles, or of a control's values.", at_least=0)

    def trained_angles(self) -> tuple[str, float]:
        """Suffix of the names of the trained angles, and their factor: angle = initial + factor * value.

        Raises ConfigError if no angles are trained.
        """
        if self.feature_source != "qnn" or not self.train_circuit:
            raise ConfigError("this QAA adapter has no circuit whose angles are trained")
        return ".angles.tau", ANGLE_SCALE

    def check(self) -> None:
        """Raise ConfigError, with the field and the allowed values, if a field is out of range."""
        check_fields(self, QAASettings)
        self.alpha = float(self.alpha)  # 16 and 16.0 are one setting
        if self.feature_source == "none" and not self.use_offset:
            raise ConfigError(
                f"{setting('feature_source')}='none' trains the offset only, which "
                f"{setting('use_offset')}=False removes"
            )
        if self.out_slices is not None:
            self.out_slices = _checked_slices(self.out_slices)


def _checked_slices(slices: Any) -> list[list[int]]:
    try:
        pairs = [[start, stop] for start, stop in slices]
        in_order = all(isinstance(end, int) for pair in pairs for end in pair) and all(a < b for a, b in pairs)
    except (TypeError, ValueError):
        pairs, in_order = [], False
    if not pairs or not in_order or any(a[1] > b[0] for a, b in pairwise(pairs)):
        raise ConfigError(
            f"{setting('out_slices')} must be ranges such as [[0, 768], [1536, 2304]], in order and without overlap, "
            f"got {slices}"
        )
    return pairs
