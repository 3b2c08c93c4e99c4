"""The fields of QPA's generator, importable without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from qpeft.checks import check_fields, is_count, option
from qpeft.errors import ConfigError, setting
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.qpa import budget as counting
from qpeft.methods.qpa.budget import QPACount

FEATURE_SOURCES = ("qnn", "qnn_frozen", "free", "random", "none")
FEATURE_MAPS = ("scaled", "squash")
ACTIVATIONS = ("silu", "gelu", "identity")
INIT_MODES = ("residual", "raw")
VECTOR_ORDERS = ("peft", "official")

_MOST_WIDTHS, _WIDEST = 64, 4096


@dataclass(kw_only=True)
class QPASettings(GeneratorConfig):
    """QPA's generator of an adapter's parameters: circuit angles and a small MLP (arXiv 2410.09846)."""

    chunk_size: int | None = option(
        None,
        "Parameters that the MLP generates per chunk (the paper's n_mlp). Set this or budget, not both.",
        at_least=1,
        at_most=2**20,
    )
    budget: float | None = option(
        None,
        "Maximum number of trainable parameters: a whole number is a count, a fraction below 1 a share of the "
        "adapter's parameters. Without chunk_size and budget: 0.5.",
        above=0,
    )
    n_layers: int = option(8, "Circuit layers L; the circuit has L angles per qubit.", at_least=1, at_most=10_000)
    hidden: tuple[int, ...] | None = option(
        None,
        "Hidden widths of the MLP. Default: 32, 64, 128, 128, 64, 32, 32, or these divided by 2, 4 or 8 "
        "for small budgets.",
    )
    activation: str = option(
        "silu", "Between the MLP's layers; identity makes the MLP one affine map.", choices=ACTIVATIONS
    )
    feature_map: str = option(
        "scaled", "From probability p to MLP input: scaled, (2^N p - 1) / sqrt(2), or squash.", choices=FEATURE_MAPS
    )
    feature_source: str = option(
        "qnn",
        "Source of the feature: the trained circuit (qnn) or a control: the circuit with frozen angles, a free "
        "trained vector, fixed noise, or no feature.",
        choices=FEATURE_SOURCES,
    )
    init_mode: str = option(
        "residual",
        "residual starts from the stock adapter's initial values; raw uses the generator's output unchanged.",
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
    angle_scale: float = option(
        10.0, "Factor folded into the angles' learning rate: angle = initial + factor * trained.", above=0
    )
    mlp_scale: float = option(
        10.0, "Factor folded into the MLP's learning rate: weight = initial + factor * trained.", above=0
    )
    seed: int = option(0, "Seed of the initial values; a checkpoint stores only the seed.", at_least=0)

    def __post_init__(self) -> None:
        if self.hidden is not None:
            self.hidden = tuple(self.hidden) if isinstance(self.hidden, Iterable) else (self.hidden,)
        self.check()

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published code's choices, without its NaN at p = 0: affine MLP, squash, raw, centered."""
        preset: dict[str, Any] = {
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
        return ".angles.tau", self.angle_scale

    def description(self) -> dict[str, Any]:
        named = ("n_layers", "feature_source", "activation", "seed")
        return {"method": "QPA (arXiv 2410.09846)", **{name: getattr(self, name) for name in named}}

    def check(self) -> None:
        """Raise ConfigError, with the field and the allowed values, if a field is out of range."""
        check_fields(self, QPASettings)
        if self.chunk_size is not None and self.budget is not None:
            raise ConfigError(f"set at most one of {setting('chunk_size')} and {setting('budget')}")
        if self.hidden is not None and not (self.hidden and all(map(is_count, self.hidden))):
            raise ConfigError(
                f"{setting('hidden')} must be a non-empty sequence of positive integers, got {list(self.hidden)}"
            )
        if self.hidden is not None and (len(self.hidden) > _MOST_WIDTHS or max(self.hidden) > _WIDEST):
            raise ConfigError(f"{setting('hidden')} must have at most {_MOST_WIDTHS} widths of at most {_WIDEST:,}")
        if self.budget is not None and self.budget >= 1 and self.budget != int(self.budget):
            raise ConfigError(
                f"{setting('budget')} must be a positive whole number (a count) or a fraction between "
                f"0 and 1, got {self.budget}"
            )

    def count(self, m: int) -> QPACount:
        """The generator's counts for m adapter parameters: total, n_qubits, n_chunks, chunk_size, ...

        Raises:
            ConfigError: m is 0, the budget is too small, or the chunks need more than `max_qubits` qubits.
        """
        if m < 1:
            raise ConfigError("no trainable adapter parameters found; attach a PEFT adapter before wrapping with QPA")
        if self.chunk_size is not None:
            chunk_size, hidden = self.chunk_size, self.hidden or counting.PAPER_HIDDEN
        else:
            chunk_size, hidden = counting.fit(m, self._budget_count(m), self.n_layers, self.hidden, self.max_qubits)
        counted = counting.count(m, chunk_size, self.n_layers, hidden, self.feature_source)
        if counted.n_qubits > self.max_qubits:
            fewest = counting.n_chunks(m, 2**self.max_qubits)
            raise ConfigError(
                f"{counted.n_chunks} chunks need {counted.n_qubits} qubits, more than "
                f"{setting('max_qubits')}={self.max_qubits}; "
                f"use {setting('chunk_size')} >= {fewest}"
            )
        return counted

    def _budget_count(self, m: int) -> int:
        share = 0.5 if self.budget is None else self.budget
        return int(share * m) if share < 1 else int(share)
