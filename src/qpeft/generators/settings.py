"""The settings of the QPA generator: plain data, checked at once, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FEATURE_SOURCES = ("qnn", "qnn_frozen", "free", "random", "none")
FEATURE_MAPS = ("scaled", "squash")
ACTIVATIONS = ("silu", "gelu", "identity")
INIT_MODES = ("residual", "raw")
VECTOR_ORDERS = ("peft", "official")


def _help(text: str, **metadata: Any) -> dict[str, Any]:
    return {"help": text, **metadata}


@dataclass(kw_only=True)
class QPAGeneratorConfig:
    """How QPA makes an adapter's numbers from circuit angles and a small MLP (arXiv 2410.09846)."""

    chunk_size: int | None = field(
        default=None,
        metadata=_help("Numbers that the MLP writes per chunk (the paper's n_mlp). Set this or budget, not both."),
    )
    budget: float | None = field(
        default=None,
        metadata=_help(
            "Trainable numbers to spend: a whole number is a count, a fraction below 1 a share of the "
            "adapter's numbers. Without chunk_size and budget: 0.5."
        ),
    )
    n_layers: int = field(default=8, metadata=_help("Circuit layers L; the circuit has L angles per qubit."))
    hidden: tuple[int, ...] | None = field(
        default=None,
        metadata=_help(
            "Inner widths of the MLP. Default: 32, 64, 128, 128, 64, 32, 32, or these divided by 2, 4 or 8 "
            "where the budget is small."
        ),
    )
    activation: str = field(
        default="silu",
        metadata=_help("Between the MLP's layers; identity makes the MLP one affine map.", choices=ACTIVATIONS),
    )
    feature_map: str = field(
        default="scaled",
        metadata=_help("From probability p to MLP input: scaled (2^N p - 1) / sqrt(2), or squash.", choices=FEATURE_MAPS),
    )
    feature_source: str = field(
        default="qnn",
        metadata=_help(
            "Where the feature comes from: the trained circuit (qnn) or a control: the circuit with frozen "
            "angles, a free trained vector, fixed noise, or no feature at all.",
            choices=FEATURE_SOURCES,
        ),
    )
    init_mode: str = field(
        default="residual",
        metadata=_help(
            "residual starts at the stock adapter's own start; raw uses the generator's output as it is.",
            choices=INIT_MODES,
        ),
    )
    center_output: bool = field(
        default=False, metadata=_help("Subtract the mean of the generated numbers (the published code does).")
    )
    output_scale: float = field(default=1.0, metadata=_help("Factor on the generated numbers."))
    vector_order: str = field(
        default="peft",
        metadata=_help("Order in which tensors are filled: PEFT's, or the published code's (lora_B first).", choices=VECTOR_ORDERS),
    )
    max_qubits: int = field(default=20, metadata=_help("Refuse circuits with more qubits than this."))
    angle_scale: float = field(
        default=10.0, metadata=_help("Factor folded into the angles' learning rate: angle = start + angle_scale * trained.")
    )
    mlp_scale: float = field(
        default=5.0, metadata=_help("Factor folded into the MLP's learning rate: weight = start + mlp_scale * trained.")
    )
    seed: int = field(default=0, metadata=_help("Seed of the starting values; a checkpoint stores the seed, not the start."))
