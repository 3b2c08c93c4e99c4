"""Put a generator over any stock adapter that is already on a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, _prepare_prompt_learning_config
from torch import Tensor, nn

from qpeft.core.binding import Binding, Slot
from qpeft.core.generator_registry import generator_name
from qpeft.core.holder import holder_of
from qpeft.core.lora_init import check_not_stationary
from qpeft.core.seeded_init import SeededStart
from qpeft.core.slots import device_of, find_slots, in_vector_order
from qpeft.errors import CheckpointError, ConfigError
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.attach.beside import keys_beside
from qpeft.methods.attach.config import AttachedConfig
from qpeft.methods.attach.folder import read_config
from qpeft.methods.attach.model import AttachedModel, attached_class

_LOST_STARTS = ("corda", "loftq", "lora_ga")  # they take data, or change the base by a random part


def attach(model: PeftModel, config: GeneratorConfig, adapter_name: str | None = None) -> PeftModel:
    """Let QPA, or a generator of your own, write every trainable tensor of an adapter that PEFT has put on `model`.

    With QPA's `init_mode="residual"` the model gives the same outputs as before. `modules_to_save` and unfrozen biases
    stay ordinary parameters. PEFT drew the adapter's start, so a compact folder holds it beside the generator's
    numbers; with `init_mode="raw"` there is none to hold.

    Example::

        model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20))
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))

    Args:
        model: A PeftModel; changed in place.
        config: The generator's settings: a QPAGeneratorConfig, or those of a generator registered with
            `qpeft.register_generator`.
        adapter_name: Which adapter; by default the active one.

    Returns:
        `model`. Saving it, the Trainer's checkpoints, `qpeft.load` and `qpeft.export` know the generator.

    Raises:
        ConfigError: no such adapter, one that is generated already or whose tensors cannot be generated, or settings
            that do not fit it.
    """
    name = _check(model, config, adapter_name)
    found = in_vector_order(generated_slots(model, name), config.vector_order)
    slots = [slot for slot, _ in found]
    initial = [_value(slot).detach().float().flatten().cpu() for slot in slots]
    start = SeededStart(config.seed)
    generator = config.make(torch.cat(initial), start)
    with torch.no_grad():
        check_not_stationary(slots, generator().split([value.numel() for value in initial]))
    attached = AttachedConfig.of(model.peft_config[name], config)
    attached.start_hash = start.hexdigest()
    attached.generated = [[slot.label, list(slot.shape)] for slot in slots]
    binding = Binding(generator.to(device_of(slots)), slots)
    beside = keys_beside(model, name, AttachedModel.container)
    if not isinstance(model, AttachedModel):
        model.__class__ = attached_class(type(model))
    assert isinstance(model, AttachedModel)
    model.hold(name, attached, binding, beside)
    return model


def load_attached(
    base: nn.Module,
    folder: Path,
    *,
    is_trainable: bool = False,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    **options: Any,
) -> PeftModel:
    """The model that `qpeft.save` wrote to `folder`: the host adapter on `base`, with its generator.

    Raises:
        CheckpointError: the folder is damaged, or made for another base model; `base` is as it was.
        ConfigError: an option that does not apply.
    """
    if options:
        raise ConfigError(f"an attached adapter cannot be loaded with {', '.join(sorted(options))}; leave it out")
    saved = read_config(folder)
    host = saved.to_stock()
    host.inference_mode = False
    _check_prompt_fits(host, base)
    try:
        model = get_peft_model(base, host, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # PEFT's words for a base without the targets
        raise CheckpointError(f"this adapter is for another base model: {error}") from error
    try:
        attached: Any = attach(model, saved.to_generator(), adapter_name)
        attached.load_adapter(folder, adapter_name, is_trainable=is_trainable)
    except BaseException:
        if isinstance(model.base_model, BaseTuner):
            model.unload()
        raise
    if not is_trainable:
        attached.requires_grad_(False)
    return attached


def _check_prompt_fits(host: Any, base: Any) -> None:
    """PEFT builds a prompt from its config alone, and learns in a forward only that it does not fit the model."""
    if not host.is_prompt_learning or not hasattr(base, "config"):
        return
    fitting = copy.deepcopy(host)
    fitting.num_layers = fitting.token_dim = fitting.num_attention_heads = None
    fitting = _prepare_prompt_learning_config(fitting, base.config)
    for name in ("num_layers", "token_dim", "num_attention_heads"):
        found, wanted = getattr(host, name), getattr(fitting, name)
        if found not in (None, wanted):
            raise CheckpointError(
                f"this adapter is for another base model: its prompt has {name}={found}, this one needs {wanted}"
            )


def _check(model: Any, config: Any, adapter_name: str | None) -> str:
    generator_name(config)  # known at all
    if not isinstance(model, PeftModel):
        raise ConfigError(f"attach takes a PeftModel, got {type(model).__name__}; call get_peft_model(base, config)")
    name = adapter_name or model.active_adapters[0]
    if name not in model.peft_config:
        raise ConfigError(f"the model has no adapter '{name}'; it has {', '.join(model.peft_config)}")
    holder = holder_of(model)
    if holder is not None and (holder is not model or name in holder.generators):
        raise ConfigError(f"adapter '{name}' is generated already; attach is for stock adapters")
    init = getattr(model.peft_config[name], "init_lora_weights", None)
    if isinstance(init, str) and (init in _LOST_STARTS or init.startswith("pissa_niter")):
        raise ConfigError(
            f"init_lora_weights='{init}' changes the base model in a way that cannot be found again on loading; "
            "use 'pissa' or 'olora', which look at the weights alone, or a start that changes nothing"
        )
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
    if not found:
        raise ConfigError("no trainable adapter parameters found; attach a PEFT adapter before wrapping with QPA")
    with _trainable(model, adapter_name):
        found = [(slot, layer) for slot, layer in found if _value(slot).requires_grad]
    if not found:
        raise ConfigError(
            f"no tensor of adapter '{adapter_name}' is trainable: it was frozen, or loaded for inference; load it "
            "with is_trainable=True"
        )
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
    """One tensor in several modules, or under several names, cannot be replaced everywhere by one view."""
    owners = {_memory(_value(slot)): (slot.owner, slot.name) for slot in slots}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            owner, its_name = owners.get(_memory(parameter), (module, own))
            if owner is not module or its_name != own:
                kind = type(model.peft_config[adapter_name]).__name__.removesuffix("Config")
                tensor = f"{name}.{own}"
                raise ConfigError(
                    f"{kind} shares {tensor} between layers, which QPA cannot generate; use another host, or an option "
                    "of it without shared tensors"
                )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


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
