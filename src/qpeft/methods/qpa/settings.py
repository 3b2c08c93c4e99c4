"""The fields of QPA's generator and the sizes that follow from them, importable without torch.

G generators compute a share of ceil(m / G) parameters each. For a share and chunk size n there are
C chunks with K features each, one basis state for each feature, so the circuit has N + log2 K
qubits with N = max(1, ceil(log2 C)). The inputs of the map are the K features, and the N bits of
the chunk's index if there is a hidden layer; without features they are the bits.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from qpeft.checks import MOST_LAYERS, check_fields, option
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.generator_config import GeneratorConfig

if TYPE_CHECKING:
    from torch import Tensor

    from qpeft.core.seeded_init import SeededInit
    from qpeft.core.slots import Slot
    from qpeft.methods.qpa.generator import QPAGenerator

MAX_QUBITS = 20  # of a circuit; a simulation of more is too slow for training
PAPER_HIDDEN = (32, 64, 128, 128, 64, 32, 32)

_LINEAR = {"features": 16, "feature_map": "whitened", "angle_scale": 1.0}
_NETWORK = {"features": 1, "feature_map": "scaled", "angle_scale": 10.0, "init_mode": "residual"}
_OFFICIAL = {
    "activation": "identity",
    "feature_map": "squash",
    "init_mode": "raw",
    "center_output": True,
    "vector_order": "official",
    "angle_scale": 1.0,
    "mlp_scale": 1.0,
}


class QPACount(NamedTuple):
    """Sizes and trainable parameters of a QPA generator for m parameters; with several generators,
    of all of them.
    """

    chunk_size: int
    n_chunks: int
    n_qubits: int  # of each circuit
    # of the map of each generator, from its inputs over hidden layers to a chunk
    widths: tuple[int, ...]
    total: int  # trainable parameters


@dataclass(kw_only=True)
class QPAGeneratorConfig(GeneratorConfig, name="qpa"):
    """QPA's generator of an adapter's parameters: circuit angles, in radians, and a map of features
    (arXiv 2410.09846).

    Raises ConfigError if a field is out of range, or both chunk_size and budget are given; for an
    adapter, if the budget is too small or its chunks need too many qubits.
    """

    chunk_size: int | None = option(
        None,
        "Parameters that are generated per chunk (the paper's n_mlp). Set this or budget, not"
        " both.",
        at_least=1,
    )
    budget: float | None = option(
        None,
        "Maximum number of trainable parameters: a whole number is a count, a fraction below 1 a"
        " share of the adapter's parameters. Without chunk_size and budget: 0.5.",
        above=0,
    )
    n_layers: int = option(8, "Circuit layers L.", at_least=1, at_most=MOST_LAYERS)
    ansatz: str = option(
        "ry_ladder",
        "The circuit. One of your own: FILE.py:NAME on the command line and in study files; in"
        " Python the name that register_ansatz registered.",
    )
    features: int | None = option(
        None,
        "Probabilities of the circuit per chunk, K, a power of two. Default: 16, or the paper's 1"
        " with hidden layers.",
        at_least=1,
        at_most=2 ** (MAX_QUBITS - 1),
    )
    hidden: tuple[int, ...] | None = option(
        (),
        "Hidden widths of the network from the features to a chunk. Default: none, one linear map."
        " None in Python and study files: the paper's 32, 64, 128, 128, 64, 32, 32, or these"
        " divided by 2, 4 or 8 for small budgets.",
    )
    n_generators: int = option(
        1, "Number of generators, each for an equal share of the parameters.", at_least=1
    )
    activation: str = option(
        "silu",
        "Between hidden layers; identity makes the network one affine map.",
        choices=("silu", "identity"),
    )
    feature_map: str | None = option(
        None,
        "From probability p to feature: scaled, (2^N p - 1) / sqrt(2); whitened, sqrt(2^N p) with"
        " mean 0 and variance 1 (of random real states), times a matrix that makes the features of"
        " the initial angles uncorrelated; or squash. Default: whitened, or scaled with hidden layers.",
        choices=("whitened", "scaled", "squash"),
    )
    feature_source: str = option(
        "qnn",
        "Source of the features: the trained circuit (qnn) or a control: the circuit with frozen"
        " angles, free trained values, fixed noise, or none (the bits of the chunk's index"
        " instead). A control takes all settings of the circuit, also those that it does not use.",
        choices=("qnn", "qnn_frozen", "free", "random", "none"),
    )
    init_mode: str | None = option(
        None,
        "small: the generated A and B of a LoRA have small initial values; residual: they are the"
        " stock adapter's, and the model is exactly the base model; raw: the generator's output"
        " unchanged. Default: small for LoRA and DoRA, residual for other hosts and with hidden"
        " layers.",
        choices=("small", "residual", "raw"),
    )
    center_output: bool = option(
        False, "Subtract the mean of the generated parameters (the published code does)."
    )
    vector_order: str = option(
        "peft",
        "Order in which tensors are filled: PEFT's, or the published code's (lora_B first).",
        choices=("peft", "official"),
    )
    angle_scale: float | None = option(
        None,
        "Factor folded into the angles' learning rate: angle = initial + factor * trained. Default:"
        " 1, or 10 with hidden layers.",
        above=0,
    )
    mlp_scale: float = option(
        10.0,
        "Factor folded into the map's learning rate: weight = initial + factor * trained.",
        above=0,
    )
    seed: int = option(
        0, "Seed of the initial values; a checkpoint stores only the seed.", at_least=0
    )

    # whether the adapter is a LoRA of this method, whose initial values can be drawn again
    _is_lora = False

    def __post_init__(self) -> None:
        if self.hidden is not None:
            self.hidden = (
                tuple(self.hidden) if isinstance(self.hidden, Iterable) else (self.hidden,)
            )
            if not all(isinstance(width, int) and width > 0 for width in self.hidden):
                raise ConfigError(f"hidden must be whole numbers of at least 1, got {self.hidden}")
        usual: dict[str, Any] = _NETWORK
        if self.hidden == ():
            usual = _LINEAR | {"init_mode": "small" if self._is_lora else "residual"}
        for name, value in usual.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        check_fields(self, QPAGeneratorConfig)
        if self.hidden == () and self.activation != "silu":
            text = f"activation={self.activation!r} has no effect without hidden layers"
            warnings.warn(QpeftWarning(text), stacklevel=3)
        Ansatz(self.ansatz, 1, self.n_layers)  # raises for an unregistered name
        if self.chunk_size is not None and self.budget is not None:
            raise ConfigError("set at most one of chunk_size and budget")
        below = 1 << (self._k.bit_length() - 1)
        if below != self._k:
            raise ConfigError(
                f"features must be a power of two, got {self._k}; use {below} or {2 * below}"
            )

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """The paper's generator: one feature per chunk, and an MLP with seven hidden layers."""
        settings.setdefault("hidden", None)
        return cls(**settings)

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published code's choices, without its NaN at p = 0: affine MLP, squash, raw,
        centered.
        """
        size = {} if "budget" in settings else {"chunk_size": 2048}
        fields = _OFFICIAL | size | settings
        return cls.paper(**fields)

    def order(self, slots: Sequence[Slot]) -> list[Slot]:
        """PEFT's order, or with vector_order official each module's lora_B before the others."""
        if self.vector_order == "peft":
            return list(slots)
        ordered: list[Slot] = []
        for _, group in itertools.groupby(slots, lambda slot: slot.label.rpartition(".lora_")[0]):
            ordered += sorted(group, key=lambda slot: ".lora_B" not in slot.label)
        return ordered

    def make(self, slots: Sequence[Slot], initial: Tensor, init: SeededInit) -> QPAGenerator:
        """As `GeneratorConfig.make`; `initial` is flat (P,), float32.

        Raises ConfigError for init_mode small on another host than LoRA and DoRA.
        """
        from qpeft.methods.qpa.generator import QPAGenerator

        if self.init_mode == "small" and not self._is_lora:
            raise ConfigError("init_mode small is for LoRA and DoRA; use residual for another host")
        keep_initial = not self._is_lora and self.init_mode == "residual"
        labels = [slot.label for slot in slots]
        return QPAGenerator(self, initial, init, labels, keep_initial=keep_initial)

    @property
    def _k(self) -> int:
        return self.features  # type: ignore[return-value]  # a number after the initialization

    def count(self, m: int) -> QPACount:
        """The generator's sizes for m adapter parameters.

        Raises ConfigError if m is 0 or below `n_generators`, the budget is too small, or the chunks
        need more than `MAX_QUBITS` qubits.
        """
        if m < 1:
            raise ConfigError(
                "no trainable adapter parameters found; attach a PEFT adapter before wrapping"
                " with QPA"
            )
        if self.n_generators > m:
            raise ConfigError(
                f"n_generators={self.n_generators:,} is more than the {m:,} parameters that they"
                " would generate; use fewer"
            )
        if self.chunk_size is None:
            return self._largest(m, self.budget_count(m))
        hidden = PAPER_HIDDEN if self.hidden is None else self.hidden
        counted = self._count(m, self.chunk_size, hidden)
        if counted.n_qubits > MAX_QUBITS:
            fewest = -(-self.share(m) * self._k // 2**MAX_QUBITS)
            raise ConfigError(
                f"{counted.n_chunks} chunks with features={self.features} need {counted.n_qubits}"
                f" qubits, more than {MAX_QUBITS}; use chunk_size >= {fewest} or fewer features"
            )
        return counted

    def share(self, m: int) -> int:
        """Parameters of each generator."""
        return -(-m // self.n_generators)

    def budget_count(self, m: int) -> int:
        """The budget as a number of trainable parameters."""
        share = 0.5 if self.budget is None else self.budget
        return int(share * m) if share < 1 else int(share)

    def _count(self, m: int, chunk_size: int, hidden: Sequence[int], source: str = "") -> QPACount:
        """The counts for chunks of `chunk_size`, for another feature source if it is given."""
        source = source or self.feature_source
        k = self._k
        g = self.n_generators
        chunks = -(-self.share(m) // chunk_size)
        bits = max(1, (chunks - 1).bit_length())
        n_qubits = bits + k.bit_length() - 1
        inputs = bits if source == "none" else k + (bits if hidden else 0)
        widths = (inputs, *hidden, chunk_size)
        of_map = _map_size(widths, has_bias=bool(hidden))
        of_features = chunks * k if source == "free" else 0
        if source == "qnn":
            of_features = Ansatz(self.ansatz, n_qubits, self.n_layers).n_angles
        return QPACount(chunk_size, g * chunks, n_qubits, widths, g * (of_features + of_map))

    def _largest(self, m: int, budget: int) -> QPACount:
        """The counts of the largest chunk size with at most `budget` trainable parameters for a
        trained circuit.

        The controls (`feature_source` other than "qnn") have the same chunk size, so that they
        differ only in the features. The total grows with the chunk size as long as the number of
        qubits is the same: of each number of qubits, from the fewest (the largest chunks), the
        smallest chunk size is tried, and then enlarged.
        """
        hidden = self._hidden_for(budget) if self.hidden is None else self.hidden
        share = self.share(m)
        most_bits = min(MAX_QUBITS + 1 - self._k.bit_length(), share.bit_length())
        tried = []
        above = share + 1  # the smallest chunk size with fewer qubits
        for bits in range(1, 1 + most_bits):
            size = -(-share // 2**bits)
            smallest_of_bits = self._count(m, size, hidden, "qnn")
            tried.append(smallest_of_bits)
            left = budget - smallest_of_bits.total
            if left >= 0:
                # parameters for one more in the chunk
                each = self.n_generators * (smallest_of_bits.widths[-2] + bool(hidden))
                return self._count(m, min(size + left // each, above - 1), hidden)
            above = size
        smallest = min(tried, key=lambda count: count.total)
        raise ConfigError(
            f"budget {budget} is too small: the smallest generator for {m} parameters has"
            f" {smallest.total} trainable parameters (chunk_size={smallest.chunk_size},"
            f" {smallest.n_qubits} qubits); raise budget, or reduce"
            f" {'hidden' if hidden else 'features'}"
        )

    def _hidden_for(self, budget: int) -> tuple[int, ...]:
        """The paper's widths, divided by 1, 2, 4 or 8 so that the inner layers have at most half of
        the budget.
        """
        for divisor in (1, 2, 4, 8):
            hidden = tuple(width // divisor for width in PAPER_HIDDEN)
            if self.n_generators * _map_size((self._k, *hidden), has_bias=True) <= budget / 2:
                break
        return hidden


def _map_size(widths: Sequence[int], *, has_bias: bool) -> int:
    """Weights and biases of linear layers between consecutive widths."""
    return sum((a + has_bias) * b for a, b in itertools.pairwise(widths))
