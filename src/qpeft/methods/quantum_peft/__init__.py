"""Quantum-PEFT (arXiv 2503.05431): circuits generate the orthogonal factors of low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass, field

from qpeft.checks import MOST_LAYERS, check_fields, option, warn_without_effect
from qpeft.errors import ConfigError
from qpeft.methods.method import Control, Method

METHOD = Method(
    key="quantum_peft",
    title="Quantum-PEFT (ICLR 2025, arXiv 2503.05431)",
    config="qpeft.methods.quantum_peft.config:QuantumPeftConfig",
    tuner="qpeft.methods.quantum_peft.config:QuantumPeftModel",
    kind="quantum",
    learning_rate=3e-3,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.quantum_peft:QuantumPeftGeneratorConfig",
    fit="qpeft.methods.quantum_peft.fit_frames:fit_for",
    save_fit="qpeft.methods.quantum_peft.fit_frames:save_frames",
    without_circuit={"family": ("lie", "core")},
    controls={
        "frozen": Control("frozen angles", {"freeze_angles": True}),
        "signs": Control("random signs", {"entangler": "signs"}),
    },
    only_ansatz="two_design",
)
_PAULI = {"family": ("pauli",)}
_LIE = {"family": ("lie",)}
_FRAMES = ("gradient", "sign", "weights", "random")


@dataclass(kw_only=True)
class QuantumPeftGeneratorConfig:
    """Quantum-PEFT's generator of U diag(lambda) V^T from few parameters (ICLR 2025, arXiv
    2503.05431).

    Importable without torch.
    """

    family: str = option(
        "pauli",
        "Form of U and V: a circuit of RY and CZ (pauli), a Lie-algebra map (lie), or a control: a"
        " trained matrix inside a frame (core).",
        choices=("pauli", "lie", "core"),
    )
    n_layers: int = option(
        2,
        "Circuit layers L; family pauli.",
        at_least=1,
        at_most=MOST_LAYERS,
        used_with=_PAULI,
    )
    construction: str = option(
        "auto",
        "Circuits for widths that are not powers of two: cosine-sine recursion (qsd), a larger"
        " circuit cut to size (pad), or qsd for widths with two or three set bits and pad for"
        " others (auto).",
        choices=("auto", "qsd", "pad"),
        used_with=_PAULI,
    )
    columns: str | None = option(
        None,
        "Columns of the circuit: with spread every angle has an effect, first is the paper's"
        " choice. Default: spread; first inside a frame and for family lie.",
        choices=("spread", "first"),
    )
    entangler: str = option(
        "cz",
        "Between the rotations: CZ gates, or a control: fixed random signs, or nothing.",
        choices=("cz", "signs", "none"),
        used_with=_PAULI,
    )
    freeze_angles: bool = option(
        False, "Control: train only lambda. Settings of the angles are accepted."
    )
    lie_rank: int = option(
        1, "Nonzero columns K' of the skew matrix; family lie.", at_least=1, used_with=_LIE
    )
    lie_map: str = option(
        "exp",
        "From the skew matrix to an orthogonal one; family lie.",
        choices=("exp", "cayley"),
        used_with=_LIE,
    )
    share: str = option(
        "none",
        "none: every matrix has its own U and V; type: one pair for all matrices of a type (all"
        " query projections, ...), with lambda per matrix.",
        choices=("none", "type"),
    )
    frame: str | None = option(
        None,
        "Apply U and V inside a frozen frame of each matrix: the leading singular vectors of the"
        " initial loss gradient (gradient), of its signs (sign, as in LoRA-SB), or of the base"
        " weight (weights, as in LoRA-XS; nothing is stored), or a control: random directions.",
        choices=_FRAMES,
    )
    frame_rank: int = option(
        32,
        "Directions in a frame, reduced to the largest power of two that fits the matrix, and 32 to"
        " those of a smaller frame file. Family core takes r directions.",
        at_least=1,
        used_with={"frame": _FRAMES},
    )
    frames: str | None = option(
        None,
        "Frame file with gradient frames that many adapters share, written by"
        " fit_frames(save_to=...) or by qpeft frames. The compact adapter then refers to it;"
        " otherwise it stores its frames as float16.",
    )
    # of the frame file
    frames_sha256: str | None = field(default=None, metadata={"filled_in": True})
    bits: int | None = option(
        None,
        "Bits per angle, in training and in the compact adapter; 16 is float16; 3 and fewer are "
        "experimental. Default: float32.",
        choices=(16, 8, 4, 3, 2, 1),
    )
    lambda_bits: int | None = option(
        None,
        "Bits per lambda, in training and in the compact adapter; 16 is float16. Default: float32.",
        choices=(16, 8, 4),
        used_with={"family": ("pauli", "lie")},
    )
    angle_scale: float | None = option(
        None,
        "Factor folded into the learning rate of the parameters of U and V. Default: 50; 15 for"
        " family lie outside a frame.",
        above=0,
    )
    lambda_scale: float = option(2.0, "Factor folded into lambda's learning rate.", above=0)
    seed: int = option(
        0, "Seed of the initial values; a checkpoint stores only the seed.", at_least=0
    )

    def __post_init__(self) -> None:
        if self.frames is not None and self.frame is None:
            self.frame = "gradient"
        if self.columns is None:
            self.columns = "first" if self.frame is not None or self.family == "lie" else "spread"
        if self.angle_scale is None:
            self.angle_scale = 15.0 if self.family == "lie" and self.frame is None else 50.0
        check_fields(self, QuantumPeftGeneratorConfig)
        warn_without_effect(self, QuantumPeftGeneratorConfig)
        if self.columns == "spread" and (self.family == "lie" or self.frame is not None):
            raise ConfigError(
                "family lie and frames use the first columns: leave columns unset or set"
                " columns='first'"
            )
        if self.family == "core" and self.frame is None:
            raise ConfigError(
                "family core is a matrix inside a frame: set frame= to one of gradient, sign,"
                " weights, random"
            )
        if self.family == "core" and self.freeze_angles:
            raise ConfigError("freeze_angles leaves nothing to train: family core has no lambda")
        if self.frames is not None and not self.follows_gradient:
            raise ConfigError(
                f"frames names a file of gradient frames: leave out frame={self.frame!r}"
            )

    @property
    def follows_gradient(self) -> bool:
        """Whether the frames are computed from the loss gradient, by fit_frames."""
        return self.frame in ("gradient", "sign")

    @property
    def stores_frames(self) -> bool:
        """Whether the adapter itself contains the frames."""
        return self.follows_gradient and self.frames is None
