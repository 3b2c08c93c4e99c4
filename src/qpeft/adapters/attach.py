"""Put QPA's generator over any stock adapter that is already on a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qpeft.adapters.attached import AttachedModel, attached_class
from qpeft.adapters.attached_config import AttachedConfig
from qpeft.adapters.attached_folder import read_config
from qpeft.adapters.binding import Binding, Slot
from qpeft.adapters.holder import holder_of
from qpeft.adapters.lora_start import check_not_stationary
from qpeft.adapters.slots import device_of, find_slots, in_vector_order
from qpeft.errors import CheckpointError, ConfigError
from qpeft.generators.qpa import QPAGenerator
from qpeft.generators.seeded_start import SeededStart
from qpeft.generators.settings import QPAGeneratorConfig


def attach(model: PeftModel, config: QPAGeneratorConfig, adapter_name: str | None = None) -> PeftModel:
    """Let QPA generate every trainable tensor of an adapter that PEFT has put on `model`.

    With `init_mode="residual"` the model gives the same outputs as before. `modules_to_save` and unfrozen biases stay
    ordinary parameters. PEFT drew the adapter's start, so a compact folder holds it beside the generator's numbers;
    with `init_mode="raw"` there is none to hold.

    Example::

        model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20))
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))

    Args:
        model: A PeftModel; changed in place.
        config: The generator's settings.
        adapter_name: Which adapter; by default the active one.

    Returns:
        `model`. Saving it, the Trainer's checkpoints, `qpeft.load` and `qpeft.export` know the generator.

    Raises:
        ConfigError: no such adapter, one that is generated already or whose tensors cannot be generated, or settings
            that do not fit it.
    """
    name = _check(model, adapter_name)
    found = in_vector_order(generated_slots(model, name), config.vector_order)
    if not found:
        raise ConfigError("no trainable adapter parameters found; attach a PEFT adapter before wrapping with QPA")
    slots = [slot for slot, _ in found]
    initial = [_value(slot).detach().float().flatten().cpu() for slot in slots]
    if config.init_mode == "residual":
        check_not_stationary(slots, initial)
    start = SeededStart(config.seed)
    drawn_here = config.init_mode == "raw"
    generator = QPAGenerator(config, torch.cat(initial), start, keep_initial=not drawn_here).to(device_of(slots))
    attached = AttachedConfig.of(model.peft_config[name], config, name)
    attached.start_hash = start.hexdigest()
    attached.generated = [[slot.label, list(slot.shape)] for slot in slots]
    binding = Binding(generator, slots)
    beside = _beside(model, name)
    if not isinstance(model, AttachedModel):
        model.__class__ = attached_class(type(model))
    assert isinstance(model, AttachedModel)
    model.hold(name, attached, binding, beside)
    return model


def load_attached(
    base: nn.Module, folder: Path, *, is_trainable: bool = False, adapter_name: str = "default", **options: Any
) -> PeftModel:
    """The model that `qpeft.save` wrote to `folder`: the host adapter on `base`, with its generator.

    Raises:
        CheckpointError: the folder is damaged, or made for another base model.
        ConfigError: an option that does not apply.
    """
    if options:
        raise ConfigError(f"an attached adapter cannot be loaded with {', '.join(sorted(options))}; leave it out")
    saved = read_config(folder)
    host = saved.to_stock()
    _check_prompt_fits(host, base)
    host.inference_mode = False
    model: Any = attach(get_peft_model(base, host, adapter_name=adapter_name), saved.to_generator(), adapter_name)
    model.load_adapter(folder, adapter_name, is_trainable=is_trainable)
    if not is_trainable:
        model.requires_grad_(False)
    return model


def _check_prompt_fits(host: Any, base: Any) -> None:
    """PEFT builds a prompt from its config alone, and learns in a forward only that it does not fit the model."""
    if not host.is_prompt_learning:
        return
    config = base.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    widths = {config.hidden_size}
    if host.peft_type == PeftType.PREFIX_TUNING:
        widths.add(config.hidden_size // heads * key_heads)  # the width of the keys
    if host.token_dim not in widths or host.num_layers != config.num_hidden_layers:
        raise CheckpointError(
            f"this adapter is for another base model: its prompt has width {host.token_dim} and {host.num_layers} "
            f"layers, this one {config.hidden_size} and {config.num_hidden_layers}"
        )


def _check(model: Any, adapter_name: str | None) -> str:
    if not isinstance(model, PeftModel):
        raise ConfigError(f"attach takes a PeftModel, got {type(model).__name__}; call get_peft_model(base, config)")
    name = adapter_name or model.active_adapters[0]
    if name not in model.peft_config:
        raise ConfigError(f"the model has no adapter '{name}'; it has {', '.join(model.peft_config)}")
    holder = holder_of(model)
    if holder is not None and (holder is not model or name in holder.generators):
        raise ConfigError(f"adapter '{name}' is generated already; attach is for stock adapters")
    if isinstance(model.peft_config[name], AdaLoraConfig):
        raise ConfigError("AdaLoRA moves ranks by the gradient of each of its parameters, so these cannot be generated")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ConfigError("the adapter is merged into the base model; call model.unmerge_adapter() first")
    return name


def generated_slots(model: PeftModel, adapter_name: str) -> list[tuple[Slot, Any]]:
    """The tensors of an adapter that `attach` would fill, in PEFT's order, with the layer that holds each.

    Raises:
        ConfigError: a tensor stands in several modules.
    """
    if model._is_prompt_learning:
        found = _prompt_slots(model.prompt_encoder[adapter_name])
    else:
        inside = _inside_wrappers(model)
        found = find_slots(model.get_base_model(), adapter_name, BaseTunerLayer)
        found = [(slot, layer) for slot, layer in found if id(layer) not in inside]
    with _trainable(model, adapter_name):
        found = [(slot, layer) for slot, layer in found if _value(slot).requires_grad]
    _refuse_shared(model, adapter_name, [slot for slot, _ in found])
    return found


@contextmanager
def _trainable(model: PeftModel, adapter_name: str) -> Iterator[None]:
    """Within: an adapter that is not active is as trainable as if it were, to see which of its tensors train."""
    if model._is_prompt_learning or adapter_name in model.active_adapters:
        yield
        return
    model.set_requires_grad(adapter_name, True)
    try:
        yield
    finally:
        model.set_requires_grad(adapter_name, False)


def _refuse_shared(model: PeftModel, adapter_name: str, slots: list[Slot]) -> None:
    """One tensor in several modules cannot be replaced in all of them by one view."""
    taken = {id(_value(slot)): slot for slot in slots}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            slot = taken.get(id(parameter))
            if slot is not None and module is not slot.owner:
                kind = type(model.peft_config[adapter_name]).__name__.removesuffix("Config")
                tensor = f"{name}.{own}"
                raise ConfigError(
                    f"{kind} shares {tensor} between layers, which QPA cannot generate; use another host, or an option "
                    "of it without shared tensors"
                )


def _prompt_slots(encoder: nn.Module) -> list[tuple[Slot, Any]]:
    return [
        (Slot(module, name, ".".join(filter(None, ("prompt_encoder", path, name))), p.shape, p.dtype), module)
        for path, module in encoder.named_modules()
        for name, p in module.named_parameters(recurse=False)
    ]


def _inside_wrappers(model: nn.Module) -> set[int]:
    """Modules under a `modules_to_save` wrapper: they stay ordinary."""
    wrappers = (module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper))
    return {id(module) for wrapper in wrappers for module in wrapper.modules()}


def _value(slot: Slot) -> nn.Parameter:
    value = slot.owner._parameters[slot.name]
    assert value is not None
    return value


def _beside(model: PeftModel, adapter_name: str) -> list[str]:
    """State dict keys of what belongs to the adapter and is not generated: trained tensors, and its buffers."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    generators = f"{AttachedModel.container}."
    found = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if (key in trained or adapter_name in key.split(".")) and not key.startswith(generators)
    }
    # VeRA's layers share their projections: one of the names is enough
    return list({(tensor.data_ptr(), tensor.shape): key for key, tensor in reversed(found.items())}.values())
