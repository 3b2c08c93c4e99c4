"""The fields of Quantum-PEFT's generator, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError, setting

FAMILIES = ("pauli", "lie", "kronecker", "core")
CONSTRUCTIONS = ("auto", "qsd", "qsd_full", "pad")
COLUMNS = ("spread", "first")
ENTANGLERS = ("cz", "signs", "none")
LIE_MAPS = ("exp", "cayley", "taylor")
SHARES = ("none", "type")
FRAMES = ("gradient", "sign", "weights", "random")
STARTS = ("random", "gradient")
BITS = (16, 8, 4, 3, 2, 1)
LAMBDA_BITS = (16, 8, 4)


@dataclass(kw_only=True)
class QuantumPeftGeneratorConfig:
    """Quantum-PEFT's generator of U diag(lambda) V^T from few parameters (ICLR 2025, arXiv 2503.05431)."""

    family: str = option(
        "pauli",
        "Form of U and V: a circuit of RY and CZ (pauli), a Lie-algebra map (lie), or a classical control: "
        "Kronecker products of small vectors (kronecker), or a trained matrix inside a frame (core).",
        choices=FAMILIES,
    )
    n_layers: int = option(2, "Circuit layers L; family pauli.", at_least=1, at_most=10_000)
    construction: str = option(
        "auto",
        "Circuits for widths that are not powers of two: cosine-sine recursion (qsd, qsd_full), a larger circuit "
        "cut to size (pad), or qsd for widths with two or three set bits and pad for others (auto).",
        choices=CONSTRUCTIONS,
    )
    columns: str | None = option(
        None,
        "Columns of the circuit: with spread every angle has an effect, first is the paper's choice. "
        "Default: spread; first inside a frame and for family lie.",
        choices=COLUMNS,
    )
    entangler: str = option(
        "cz", "Between the rotations: CZ gates, or a control: fixed random signs, or nothing.", choices=ENTANGLERS
    )
    freeze_angles: bool = option(False, "Control: train only lambda.")
    lie_rank: int = option(1, "Nonzero columns K' of the skew matrix; family lie.", at_least=1)
    lie_map: str = option(
        "exp", "From the skew matrix to an orthogonal one; taylor for reproduction only.", choices=LIE_MAPS
    )
    taylor_order: int = option(18, "Terms of lie_map taylor.", at_least=1, at_most=1000)
    share: str = option(
        "none",
        "none: every matrix has its own U and V; type: one pair for all matrices of a type (all query "
        "projections, ...), with lambda per matrix.",
        choices=SHARES,
    )
    frame: str | None = option(
        None,
        "Apply U and V inside a frozen frame of each matrix: the leading singular vectors of the initial loss "
        "gradient (gradient), of its signs (sign, as in LoRA-SB), or of the base weight (weights, as in LoRA-XS; "
        "nothing is stored), or a control: random directions.",
        choices=FRAMES,
    )
    frame_rank: int = option(
        32, "Directions in a frame, reduced to the largest power of two that fits the matrix.", at_least=1
    )
    store_frames: bool = option(
        True,
        "Save gradient frames (float16) in the compact adapter; otherwise only their hash, and loading needs "
        "fit_frames with the same batches.",
    )
    frames: str | None = option(
        None,
        "Frame file with gradient frames that many adapters share, written by fit_frames(save_to=...) or by qpeft "
        "frames. The compact adapter then refers to it instead of storing frames.",
    )
    frames_sha256: str | None = field(default=None, metadata={"filled_in": True})  # of the frame file
    start: str = option(
        "random",
        "Initial angles: random, or fitted by fit_frames to the loss gradient (without further storage).",
        choices=STARTS,
    )
    bits: int | None = option(
        None,
        "Bits per angle: 16 (float16; also for family core), 8, 4, 3, 2 or 1, in training and in the compact adapter; "
        "3 and fewer are experimental. Default: float32.",
    )
    lambda_bits: int | None = option(
        None,
        "Bits per lambda and per norm gain: 16 (float16), 8 or 4, in training and in the compact adapter. "
        "Default: float32.",
    )
    group_size: int = option(
        128,
        "Angles of a matrix that share a range when they are quantized; 0: all angles of one width share one.",
        at_least=0,
    )
    angle_scale: float | None = option(
        None,
        "Factor folded into the learning rate of the parameters of U and V. Default: 50; 15 for family lie "
        "outside a frame.",
        above=0,
    )
    lambda_scale: float = option(2.0, "Factor folded into lambda's learning rate.", above=0)
    gain_scale: float = option(50.0, "Factor folded into the learning rate of norm gains in modules_to_save.", above=0)
    seed: int = option(0, "Seed of the initial values; a checkpoint stores only the seed.", at_least=0)

    def __post_init__(self) -> None:
        if self.frames is not None and self.frame is None:
            self.frame = "gradient"
        if self.columns is None:
            self.columns = "first" if self.frame is not None or self.family == "lie" else "spread"
        if self.angle_scale is None:
            self.angle_scale = 15.0 if self.family == "lie" and self.frame is None else 50.0
        self.check()

    @classmethod
    def paper_pauli(cls, **settings: Any) -> Self:
        """An interpretation of the paper's circuits: one layer, first columns, the whole recursion."""
        return cls(**{"r": 4, "n_layers": 1, "columns": "first", "construction": "qsd_full", **settings})

    @classmethod
    def paper_taylor(cls, **settings: Any) -> Self:
        """The paper's truncated series: one nonzero column, 18 terms."""
        return cls(**{"r": 4, "family": "lie", "lie_rank": 1, "lie_map": "taylor", **settings})

    def trained_angles(self) -> tuple[str, float]:
        """Suffix of the names of the trained angles, and their factor: angle = initial + factor * value.

        Raises ConfigError if no angles are trained, or not stored as a distance from their seeded initial values.
        """
        if self.family != "pauli":
            raise ConfigError(f"family {self.family} of Quantum-PEFT has no circuit, so there are no angles")
        if self.freeze_angles:
            raise ConfigError(
                f"{setting('freeze_angles')}: the angles are not trained, so there is no movement to measure"
            )
        if self.bits is not None:
            raise ConfigError("quantized angles are stored without their initial values: no movement can be measured")
        if self.start == "gradient":
            raise ConfigError("start='gradient' moved the angles before training: no movement can be measured")
        assert self.angle_scale is not None
        return ".numbers.tau", self.angle_scale

    @property
    def follows_gradient(self) -> bool:
        """Whether the frames are computed from the loss gradient, by fit_frames."""
        return self.frame in ("gradient", "sign")

    def check(self) -> None:
        """Raise ConfigError, with the field and the allowed values, if a field is out of range."""
        check_fields(self, QuantumPeftGeneratorConfig)
        for name, allowed in (("bits", BITS), ("lambda_bits", LAMBDA_BITS)):
            if (value := getattr(self, name)) not in (None, *allowed):
                raise ConfigError(f"{setting(name)} must be one of {', '.join(map(str, allowed))} or None, got {value}")
        self._check_together()

    def _check_together(self) -> None:
        if self.columns == "spread" and (self.family == "lie" or self.frame is not None):
            what = "family lie" if self.family == "lie" else "a frame"
            raise ConfigError(f"{what} uses the first columns; leave columns unset or set columns='first'")
        if self.family == "core" and self.frame is None:
            raise ConfigError(f"family core is a matrix inside a frame; set frame= to one of {', '.join(FRAMES)}")
        if self.family == "core" and (self.share != "none" or self.freeze_angles or self.bits not in (None, 16)):
            raise ConfigError(
                f"family core trains one matrix per module: {setting('share')} and {setting('freeze_angles')} do not "
                f"apply, and {setting('bits')} is 16 or None"
            )
        if self.frames is not None and self.frame != "gradient":
            raise ConfigError(f"{setting('frames')} names a file of gradient frames; leave out frame={self.frame!r}")
        if self.entangler != "cz" and self.family != "pauli":
            raise ConfigError(f"entangler is for family pauli; family {self.family} has no circuit")
        if self.start == "gradient" and (
            self.frame is not None or self.family != "pauli" or self.share != "none" or self.freeze_angles
        ):
            raise ConfigError(
                "start='gradient' fits the trained circuits of single matrices: it needs family pauli, share='none', "
                "no freeze_angles and no frame (inside a gradient frame the first columns are aligned already)"
            )


def angles_hardly_move(settings: Any, config: Any) -> str | None:
    """A warning if learning rate and steps are too small for the angles to move.

    Adam moves an angle by at most about angle_scale * lr per step, and lr is half of its peak in the mean unless it
    stays constant.
    """
    if config.family != "pauli" or config.freeze_angles or config.follows_gradient:
        return None  # in the directions of the gradient a short distance is sufficient
    distance = settings.n_steps * settings.lr * config.angle_scale / (1 if settings.lr_schedule == "constant" else 2)
    if distance >= 2:
        return None
    return (
        f"angles move at most {distance:.2g} radians in {settings.n_steps} steps, and may need several; if the loss is "
        "still too high after training, raise the learning rate, the steps or angle_scale"
    )
