"""The fields of QPA's generator, importable without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from qpeft.checks import check_fields, is_count, option
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, setting
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.qpa.budget import PAPER_HIDDEN, QPACount, QPASize, n_chunks

FEATURE_SOURCES = ("qnn", "qnn_frozen", "free", "random", "none")
FEATURE_MAPS = ("whitened", "scaled", "squash")
ACTIVATIONS = ("silu", "gelu", "identity")
INIT_MODES = ("small", "residual", "raw")
VECTOR_ORDERS = ("peft", "official")

_MOST_WIDTHS, _WIDEST = 64, 4096
_PAPER: Mapping[str, Any] = {"features": 1, "hidden": None, "feature_map": "scaled", "init_mode": "residual"}
_FEATURES = 16  # of a linear map


@dataclass(kw_only=True)
class QPASettings(GeneratorConfig):
    """QPA's generator of an adapter's parameters: circuit angles and a map of features (arXiv 2410.09846)."""

    chunk_size: int | None = option(
        None,
        "Parameters that are generated per chunk (the paper's n_mlp). Set this or budget, not both.",
        at_least=1,
        at_most=2**20,
    )
    budget: float | None = option(
        None,
        "Maximum number of trainable parameters: a whole number is a count, a fraction below 1 a share of the "
        "adapter's parameters. Without chunk_size and budget: 0.5.",
        above=0,
    )
    n_layers: int = option(8, "Circuit layers L.", at_least=1, at_most=10_000)
    ansatz: str = option(
        "ry_ladder",
        "The circuit. One of your own: FILE.py:NAME on the command line and in study files; in Python the name that "
        "register_ansatz registered.",
    )
    features: int | None = option(
        None,
        "Probabilities of the circuit per chunk, K, a power of two. Default: 16, or the paper's 1 with hidden layers.",
        at_least=1,
        at_most=1024,
    )
    hidden: tuple[int, ...] | None = option(
        (),
        "Hidden widths of the network from the features to a chunk. Default: none, one linear map. None in Python and "
        "study files: the paper's 32, 64, 128, 128, 64, 32, 32, or these divided by 2, 4 or 8 for small budgets.",
    )
    n_generators: int = option(
        1, "Number of generators, each for an equal share of the parameters.", at_least=1, at_most=1024
    )
    activation: str = option(
        "silu", "Between hidden layers; identity makes the network one affine map.", choices=ACTIVATIONS
    )
    feature_map: str | None = option(
        None,
        "From probability p to feature: scaled, (2^N p - 1) / sqrt(2); whitened, sqrt(2^N p) with mean 0 and variance "
        "1, times a matrix that makes the features of the initial angles uncorrelated; or squash. Default: whitened, "
        "or scaled with hidden layers.",
        choices=FEATURE_MAPS,
    )
    feature_source: str = option(
        "qnn",
        "Source of the features: the trained circuit (qnn) or a control: the circuit with frozen angles, free trained "
        "values, fixed noise, or none (the bits of the chunk's index instead).",
        choices=FEATURE_SOURCES,
    )
    init_mode: str | None = option(
        None,
        "small: the generated A and B of a LoRA have small initial values; residual: they are the stock adapter's, and "
        "the model is exactly the base model; raw: the generator's output unchanged. Default: small for LoRA and "
        "DoRA, residual for other hosts and with hidden layers.",
        choices=INIT_MODES,
    )
    center_output: bool = option(False, "Subtract the mean of the generated parameters (the published code does).")
    output_scale: float = option(1.0, "Factor on the generated parameters.", above=0)
    vector_order: str = option(
        "peft",
        "Order in which tensors are filled: PEFT's, or the published code's (lora_B first).",
        choices=VECTOR_ORDERS,
    )
    max_qubits: int = option(20, "Refuse circuits with more qubits than this.", at_least=1)
    angle_scale: float | None = option(
        None,
        "Factor folded into the angles' learning rate: angle = initial + factor * trained. Default: 1, or 10 with "
        "hidden layers.",
        above=0,
    )
    mlp_scale: float = option(
        10.0, "Factor folded into the map's learning rate: weight = initial + factor * trained.", above=0
    )
    seed: int = option(0, "Seed of the initial values; a checkpoint stores only the seed.", at_least=0)

    _linear_init = "residual"  # default of `init_mode` without hidden layers

    def __post_init__(self) -> None:
        if self.hidden is not None:
            self.hidden = tuple(self.hidden) if isinstance(self.hidden, Iterable) else (self.hidden,)
        is_linear = self.hidden == ()  # in files of release 0.1 it is not
        if self.features is None:
            self.features = _FEATURES if is_linear else 1
        if self.feature_map is None:
            self.feature_map = "whitened" if is_linear else "scaled"
        if self.angle_scale is None:
            self.angle_scale = 1.0 if is_linear else 10.0
        if self.init_mode is None:
            self.init_mode = self._linear_init if is_linear else "residual"
        self.check()

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """The paper's generator: one feature per chunk, and an MLP with seven hidden layers."""
        return cls(**{**_PAPER, **settings})

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published code's choices, without its NaN at p = 0: affine MLP, squash, raw, centered."""
        preset: dict[str, Any] = {
            **_PAPER,
            "activation": "identity",
            "feature_map": "squash",
            "init_mode": "raw",
            "center_output": True,
            "vector_order": "official",
            "angle_scale": 1.0,
            "mlp_scale": 1.0,
        }
        if "budget" not in settings:
            preset["chunk_size"] = 2048
        return cls(**{**preset, **settings})

    def trained_angles(self) -> tuple[str, float]:
        """Suffix of the names of the trained angles, and their factor: angle = initial + factor * value.

        Raises ConfigError if no angles are trained.
        """
        if self.feature_source != "qnn":
            raise ConfigError(
                f"{setting('feature_source')} {self.feature_source} has no circuit whose angles are trained"
            )
        assert self.angle_scale is not None
        return ".angles.tau", self.angle_scale

    def description(self) -> dict[str, Any]:
        named = ("ansatz", "n_layers", "features", "n_generators", "feature_source", "seed")
        return {"method": "QPA (arXiv 2410.09846)", **{name: getattr(self, name) for name in named}}

    def check(self) -> None:
        """Raise ConfigError, with the field and the allowed values, if a field is out of range."""
        check_fields(self, QPASettings)
        if self.chunk_size is not None and self.budget is not None:
            raise ConfigError(f"set at most one of {setting('chunk_size')} and {setting('budget')}")
        if self.hidden is not None and not all(map(is_count, self.hidden)):
            raise ConfigError(f"{setting('hidden')} must be a sequence of positive integers, got {list(self.hidden)}")
        if self.hidden is not None and (len(self.hidden) > _MOST_WIDTHS or max(self.hidden, default=0) > _WIDEST):
            raise ConfigError(f"{setting('hidden')} must have at most {_MOST_WIDTHS} widths of at most {_WIDEST:,}")
        if self.n_features & (self.n_features - 1):
            below = 1 << (self.n_features.bit_length() - 1)
            raise ConfigError(
                f"{setting('features')} must be a power of two, got {self.features}; use {below} or {2 * below}"
            )
        Ansatz(self.ansatz, 1, self.n_layers)  # raises for an unregistered name
        if self.budget is not None and self.budget >= 1 and self.budget != int(self.budget):
            raise ConfigError(
                f"{setting('budget')} must be a positive whole number (a count) or a fraction between "
                f"0 and 1, got {self.budget}"
            )

    @property
    def n_features(self) -> int:
        """`features`, which is a number after the initialization."""
        assert self.features is not None
        return self.features

    def count(self, m: int) -> QPACount:
        """The generator's counts for m adapter parameters: total, n_qubits, n_chunks, chunk_size, ...

        Raises:
            ConfigError: m is 0, the budget is too small, or the chunks need more than `max_qubits` qubits.
        """
        if m < 1:
            raise ConfigError("no trainable adapter parameters found; attach a PEFT adapter before wrapping with QPA")
        size = self.size(m)
        if (self.n_generators - 1) * size.share >= m:
            raise ConfigError(f"{setting('n_generators')}={self.n_generators} is too many for {m} adapter parameters")
        most_bits = self.max_qubits - size.feature_qubits
        if most_bits < 1:
            raise ConfigError(
                f"{setting('features')}={self.features} needs {size.feature_qubits + 1} qubits or more, "
                f"more than {setting('max_qubits')}={self.max_qubits}; use fewer features, or raise "
                f"{setting('max_qubits')}"
            )
        if self.chunk_size is not None:
            chunk_size, hidden = self.chunk_size, PAPER_HIDDEN if self.hidden is None else self.hidden
        else:
            chunk_size, hidden = size.fit(self.budget_count(m), self.hidden, self.max_qubits)
        counted = size.count(chunk_size, hidden)
        if counted.n_qubits > self.max_qubits:
            fewest = n_chunks(size.share, 2**most_bits)
            circuit = "each circuit's " if self.n_generators > 1 else ""
            raise ConfigError(
                f"with {setting('features')}={self.features}, {circuit}{n_chunks(size.share, chunk_size)} chunks need "
                f"{counted.n_qubits} qubits, more than {setting('max_qubits')}={self.max_qubits}; "
                f"use {setting('chunk_size')} >= {fewest}, fewer features, or raise {setting('max_qubits')}"
            )
        return counted

    def size(self, m: int) -> QPASize:
        """What determines the counts for m adapter parameters, apart from chunk size and hidden widths."""
        return QPASize(m, self.n_layers, self.ansatz, self.n_features, self.feature_source, self.n_generators)

    def budget_count(self, m: int) -> int:
        share = 0.5 if self.budget is None else self.budget
        return int(share * m) if share < 1 else int(share)
