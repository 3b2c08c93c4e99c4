"""`qpeft.plan`: what a method costs on a base model. Everything is counted on the meta device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock, get_ident
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftConfig, UniLoraModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PretrainedConfig

from qpeft.backends import BackendSettings
from qpeft.core.compact_state import is_compact
from qpeft.core.config import GeneratedConfig, type_name
from qpeft.core.export import has_stock_form
from qpeft.core.generator import OTHER, Generator
from qpeft.core.generator_holder import count_trainable, holder_of
from qpeft.core.meta_model import on_meta
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.param_groups import param_groups
from qpeft.core.seeded_init import SeededInit
from qpeft.core.set_backend import circuit_runs
from qpeft.core.slots import Slot
from qpeft.core.targets import check_target_modules
from qpeft.errors import ConfigError, QpeftError
from qpeft.generator_config import GeneratorConfig, generator_name
from qpeft.methods.attach import generated_slots
from qpeft.methods.registry import of_config

BYTES = 4  # float32
_HASH = "fingerprint"  # the end of the names of hashes in a checkpoint, which are not counted


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a method: parameters, bytes, sizes, and notes to read before training."""

    method: str
    trainable: int  #: parameters that the optimizer sees, `modules_to_save` included
    trainable_parts: dict[str, int]
    deployed: int  #: parameters of the adapter at inference
    #: tensors of the compact adapter: parameters and frames, without the file's header and hashes
    stored_bytes: int
    #: exported adapter, tensors only; None: stock PEFT has no such adapter
    exported_bytes: int | None
    needs_qpeft: bool  #: to load the compact adapter
    base_parameters: int
    target_modules: list[str]
    #: of the method, such as n_qubits of the largest circuit
    sizes: dict[str, Any] = field(default_factory=dict)
    #: cost of the circuits on a backend, see `CircuitRun.forecast`
    circuits: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def plan(
    base: nn.Module | PretrainedConfig | str | Path,
    config: PeftConfig,
    generator: GeneratorConfig | None = None,
    *,
    steps: int = 500,
    trust_remote_code: bool = False,
    **backend: Any,
) -> Plan:
    """Count the parameters and bytes that `config` would train, deploy and store on `base`.

    Args:
        base: A model (not changed), a hub id, a local folder, or a transformers config; no weights
            are read.
        config: The config of any registered method, or a stock PEFT config.
        generator: The generator that `qpeft.attach` would put on the adapter of a stock `config`.
        steps: Optimizer steps for which circuits are counted.
        trust_remote_code: Execute Python code that the folder or repository of `base` contains.
        backend: `backend`, `shots`, `noise`, `shot_budget` of `qpeft.set_backend`. With shots, or
            with another backend than "exact", `Plan.circuits` contains the cost of the method's
            circuits; nothing is sent.

    Raises:
        ConfigError: the base is not found or has an adapter already, a target matches no module or
            one of a type that the method cannot adapt, or the options do not fit.
    """
    if not isinstance(config, PeftConfig):
        raise ConfigError(
            f"plan takes the config of an adapter, such as QPAConfig(), got {type(config).__name__}"
        )
    model = on_meta(base, config.task_type, trust_remote_code)
    base_parameters = sum(p.numel() for p in model.parameters())
    config = copy.deepcopy(config)
    config.inference_mode = False  # as in a config that was read from a folder
    own = config if isinstance(config, GeneratedConfig) else None
    if own is not None:
        own.fill_from_frame_file(model)
    check_target_modules(model, config)
    stock = config if own is None else own.to_stock()
    try:
        with torch.device("meta"):  # FourierFT and others would draw values for minutes
            adapted = _adapt(model, stock)
    except NotImplementedError:  # Uni-LoRA with save_indices counts values
        adapted = _adapt(on_meta(base, config.task_type, trust_remote_code), stock)
    tuner = adapted.base_model
    targets = []
    if isinstance(tuner, BaseTuner):  # not a prompt
        targets = [*tuner.targeted_module_names, *tuner.targeted_parameter_names]
    counts = _count(config, adapted)
    made = None
    maker = generator or own
    if maker is not None:
        slots = generated_slots(adapted, "default")
        initial = torch.empty(sum(slot.shape.numel() for slot in slots), device="meta")  # (P,)
        made = maker.make(maker.order(slots), initial, SeededInit(maker.seed, "meta"))
        counts |= _count_generator(made, slots, adapted)
    circuits = None
    chosen = BackendSettings(**backend)
    if chosen != BackendSettings():
        run: Any = next(iter(circuit_runs(made, chosen).values()))
        circuits = run.forecast(steps)
    return Plan(
        method=generator_name(generator) if generator else type_name(config),
        base_parameters=base_parameters,
        target_modules=targets,
        circuits=circuits,
        **counts,
    )


def _count(config: Any, adapted: Any) -> dict[str, Any]:
    """The fields of a Plan for an adapter that is trained as it is; `adapted` is the model on the
    meta device.
    """
    tuner = adapted.base_model
    is_stock = has_stock_form(adapted)
    deployed = count_deployed(adapted)
    stored = count_stored(adapted)
    if getattr(config, "init_lora_weights", None) == "lora_ga":
        # the saved adapter also contains the initial one, which PEFT subtracted from the base
        deployed += count_lora(adapted)
        stored += count_lora(adapted)
    exported = deployed if is_compact(adapted) else stored
    merged = "" if getattr(tuner, "merges", False) else "merged into the base, nor "
    note = f"no stock PEFT adapter is equal to it: it cannot be {merged}exported"
    return {
        "trainable": count_trainable(adapted),
        "trainable_parts": _parts(adapted, OTHER.name),
        "deployed": deployed,
        "stored_bytes": stored * BYTES,
        "exported_bytes": exported * BYTES if is_stock else None,
        "needs_qpeft": is_compact(adapted) or not is_stock,
        "sizes": tuner.plan_sizes() if isinstance(tuner, OwnTuner) else {},
        "notes": [] if is_stock else [note],
    }


def _size_at_rank_1(slot: Slot, host: Any) -> int:
    """The parameters of a factor of LoRA at rank 1; 0 for another tensor."""
    module, _, part = slot.label.rpartition(".lora_")
    if not part.startswith(("A", "B", "embedding_A", "embedding_B")):
        return 0
    ranks = host.rank_pattern
    return slot.shape.numel() // ranks.get(get_pattern_key(list(ranks), module), host.r)


def _count_generator(generator: Generator, slots: Sequence[Slot], adapted: Any) -> dict[str, Any]:
    """The other fields of a Plan if the tensors `slots` of this adapter are generated."""
    m = sum(slot.shape.numel() for slot in slots)
    trained = count_trainable(generator)
    deployed = count_trainable(adapted)
    other = deployed - m  # trained biases and modules, which are not generated
    sizes = generator.plan_sizes()
    packed = generator.pack(generator.state_dict())
    n_bytes = {name: tensor.nbytes for name, tensor in packed.items() if name != _HASH}
    frame_bytes = sum(n for name, n in n_bytes.items() if name.startswith("frames."))
    if frame_bytes:
        sizes["frame_bytes"] = frame_bytes
    notes = []
    if generator.is_compression and trained >= m:
        notes.append(f"{trained:,} trained parameters for {m:,} generated: not a compression")
    host = adapted.active_peft_config
    size = sum(_size_at_rank_1(slot, host) for slot in slots)
    if generator.is_compression and size:
        # the largest rank of a LoRA that trains no more
        r = min([host.r, *host.rank_pattern.values()])
        rank = min(max(trained, sizes.get("budget", 0)) // size, r)
        if rank:
            notes.append(
                f"LoRA of rank {rank} on the same modules trains {size * rank:,} parameters, within"
                " this budget"
            )
    generated = {slot.owner.get_parameter(slot.name).untyped_storage()._cdata for slot in slots}
    return {
        "trainable": trained + other,
        "trainable_parts": {**_parts(generator, "generator"), "other": other},
        "deployed": deployed,
        "stored_bytes": sum(n_bytes.values()) + count_stored(adapted, generated) * BYTES,
        "needs_qpeft": True,
        "sizes": sizes,
        "notes": notes,
    }


def _parts(module: nn.Module, ungrouped: str) -> dict[str, int]:
    """The trainable parameters of each group of `qpeft.param_groups`."""
    groups = param_groups(module, lr=0.0) if count_trainable(module) else []
    parts = {}
    for group in groups:
        name = ungrouped if group["name"] == OTHER.name else group["name"]
        parts[name] = sum(p.numel() for p in group["params"])
    return parts


def _adapt(model: nn.Module, config: Any) -> Any:
    """`model` with the adapter, without the steps of PEFT that need weights or take long.

    Raises ConfigError, with PEFT's reason, if the adapter does not fit the model.
    """
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str):
        config = copy.copy(config)  # the counts need the initialization
        config.init_lora_weights = True  # PiSSA and others need weights
    # Uni-LoRA would draw an index for each parameter of its LoRA, which takes seconds
    drawing: Any = _replaced(
        UniLoraModel, _assign_unilora_indices_and_scales=lambda *args, **kwargs: None
    )
    if getattr(config, "save_indices", True):  # the indices are counted, or it is another method
        drawing = nullcontext()
    # BOFT would make and read matrices of permutations
    permuting = _replaced(
        BOFTLayer,
        block_butterfly_perm=lambda _, n, *rest: n,
        perm2mat=lambda _, n: torch.empty(n, n),
    )
    try:
        with drawing, permuting, warnings.catch_warnings():
            # PEFT reads an attribute by a name that transformers is giving up
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            # without casts, which take time and change no count
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except QpeftError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError) as error:  # raised by PEFT
        raise ConfigError(str(error).partition("\n")[0]) from error
    if init == "olora" or str(init).startswith("pissa"):
        _narrow_factors(adapted)
    return adapted


_replacing = RLock()


@contextmanager
def _replaced(owner: type, **replacements: Callable[..., Any]) -> Iterator[None]:
    """Within: this thread calls these in place of methods of a class of PEFT; other threads, which
    may make adapters meanwhile, call the methods.
    """
    thread = get_ident()

    def chosen(name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            called = replacements[name] if get_ident() == thread else method
            return called(*args, **kwargs)

        return call

    with _replacing, ExitStack() as replaced:  # one at a time: each puts back what it has found
        for name in replacements:
            replaced.enter_context(patch.object(owner, name, chosen(name)))
        yield


def _narrow_factors(adapted: nn.Module) -> None:
    """Give each LoRA the rank of a factorization of its weight: min(r, d_out, d_in)."""
    layers: list[Any] = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        full_rank = min(layer.in_features, layer.out_features)
        for a, b in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
            a.weight = nn.Parameter(a.weight[:full_rank])
            b.weight = nn.Parameter(b.weight[:, :full_rank])


def count_deployed(adapted: Any) -> int:
    """Parameters of an adapter at inference, in addition to the base; of a prompt, the output of
    its encoder.
    """
    holder = holder_of(adapted)
    trained = count_trainable(adapted)
    if holder is not None:
        return holder.count_generated() + trained - count_trainable(holder)
    if is_compact(adapted) and has_stock_form(adapted):
        return trained + adapted.base_model.count_more()
    return count_stored(adapted) if adapted.active_peft_config.is_prompt_learning else trained


def count_lora(adapted: Any) -> int:
    """Trainable parameters of lora_A and lora_B."""
    return sum(
        p.numel() for name, p in adapted.named_parameters() if p.requires_grad and ".lora_" in name
    )


def count_stored(adapted: Any, generated: Collection[int] = ()) -> int:
    """Parameters in the file of an adapter that is saved as it is, without tensors in the memory
    `generated`.

    Some methods store more than they train, for example VeRA its projections. Of a prompt the
    output of its encoder is stored.
    """
    config: Any = adapted.active_peft_config
    if not config.is_prompt_learning:
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        return sum(
            tensor.numel()
            for name, tensor in state.items()
            if not name.endswith(_HASH) and tensor.untyped_storage()._cdata not in generated
        )
    saved_modules = sum(
        p.numel() for name, p in adapted.named_parameters() if ".modules_to_save." in name
    )
    if generated:
        return saved_modules
    record = of_config(config)
    has_cache = record is not None and record.fills_cache
    # keys and values of each layer, or a vector for each of the inputs
    n_vectors = 2 * config.num_layers if has_cache else config.num_transformer_submodules
    return saved_modules + config.num_virtual_tokens * n_vectors * config.token_dim
