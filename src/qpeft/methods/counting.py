"""The result of `plan`, and the counts of methods without a `count` of their own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from peft import PeftConfig, PeftType, get_peft_model_state_dict
from torch import Tensor

from qpeft.core.adapter_form import count_trainable, form_of, own_kind
from qpeft.core.generator_holder import GeneratorHolder
from qpeft.methods.registry import find_by_config

BYTES = 4  # float32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a method: parameters, bytes, qubits, and notes to read before training."""

    method: str
    trainable: int  #: parameters that the optimizer sees, `modules_to_save` included
    trainable_parts: dict[str, int]
    acting: int | None = None  #: Quantum-PEFT: trainable parameters with an effect, if known
    deployed: int  #: parameters of the adapter at inference
    stored_bytes: int  #: tensors of the compact checkpoint: parameters and frames, without the file's header and hashes
    exported_bytes: int | None  #: exported adapter, tensors only; None: stock PEFT has no such adapter
    needs_qpeft: bool  #: to load the compact checkpoint
    base_parameters: int
    target_modules: list[str]
    lora_rank_1: int | None = None  #: Quantum-PEFT: parameters of a LoRA of rank 1 on the same modules
    n_qubits: int | None = None  #: of the largest circuit
    n_circuits: int | None = None  #: each with its own angles
    dead_angles: int | None = None  #: QAA: angles without effect, in all circuits
    n_chunks: int | None = None
    chunk_size: int | None = None
    hidden: tuple[int, ...] | None = None
    rank_bound: int | None = None  #: QPA: of the (C, n) matrix of chunks; Quantum-PEFT: of every update, the largest K
    circuits: dict[str, Any] | None = None  #: cost of the circuits on a backend, see `Forecast`
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_stock(config: PeftConfig, adapted: Any) -> dict[str, Any]:
    """The fields of a Plan for a stock adapter; `adapted` is the model on the meta device."""
    total, stored = count_trainable(adapted), count_stored(adapted)
    initial = count_lora(adapted) if getattr(config, "init_lora_weights", None) == "lora_ga" else 0
    stored += initial  # the saved adapter also contains the initial one, which PEFT subtracted from the base
    is_prompt = adapted.active_peft_config.is_prompt_learning  # its encoder's output is stored, not the encoder
    return {
        "method": str(getattr(config.peft_type, "value", config.peft_type)).lower(),
        "trainable": total,
        "trainable_parts": {"adapter": total},
        "deployed": stored if is_prompt else total + initial,
        "stored_bytes": stored * BYTES,
        "exported_bytes": stored * BYTES,
        "needs_qpeft": False,
    }


def count_live(config: PeftConfig, adapted: Any) -> dict[str, Any]:
    """As `count_stock`, for any method: the counts of the adapter itself."""
    form, method = form_of(adapted), find_by_config(config)
    if form is None and own_kind(adapted) is None:
        return count_stock(config, adapted)
    counts = {**count_stock(config, adapted), "needs_qpeft": True}
    if method is not None:
        counts["method"] = method.key
    if form is None:
        return {**counts, "exported_bytes": None, "notes": ["its tuner has no export, so plain PEFT cannot load it"]}
    counts["deployed"] = form.count_deployed(adapted)
    if isinstance(form, GeneratorHolder):
        generator = count_trainable(form.generators)
        other = counts["trainable"] - generator
        state = [tensor for one in form.generators.values() for tensor in _packed(one)]
        counts["trainable_parts"] = {"generator": generator, "other": other}
        counts["stored_bytes"] = sum(tensor.nbytes for tensor in state) + other * BYTES
    if own_kind(adapted):
        notes = ["not linear: it cannot be merged into the base, nor exported as a stock PEFT adapter"]
        return {**counts, "exported_bytes": None, "notes": notes}
    return {**counts, "exported_bytes": counts["deployed"] * BYTES}


def _packed(generator: Any) -> list[Tensor]:
    """The tensors of the generator in a compact checkpoint, without its fingerprint."""
    packed = generator.pack(generator.state_dict())
    return [tensor for name, tensor in packed.items() if not name.endswith("fingerprint")]


def count_lora(adapted: Any) -> int:
    """Trainable parameters of lora_A and lora_B."""
    return sum(p.numel() for name, p in adapted.named_parameters() if p.requires_grad and ".lora_" in name)


def count_stored(adapted: Any) -> int:
    """Parameters in a stock adapter's file.

    Some methods store more than they train, for example VeRA its projections. Of a prompt the output of its encoder is
    stored.
    """
    config: Any = adapted.active_peft_config
    if not config.is_prompt_learning:
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        return sum(tensor.numel() for tensor in state.values())
    saved_modules = sum(p.numel() for name, p in adapted.named_parameters() if ".modules_to_save." in name)
    is_prefix = config.peft_type == PeftType.PREFIX_TUNING
    per_token = config.token_dim * (2 * config.num_layers if is_prefix else config.num_transformer_submodules)
    return config.num_virtual_tokens * per_token + saved_modules
