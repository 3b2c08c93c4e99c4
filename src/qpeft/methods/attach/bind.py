"""Create the generator of an adapter that is already on a model, and bind it to the adapter's tensors."""

from __future__ import annotations

from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner

from qpeft.core.adapter_form import check_adapted
from qpeft.core.base_digest import bind_base
from qpeft.core.binding import Binding
from qpeft.core.generator_holder import GeneratorHolder, holder_of
from qpeft.core.generator_registry import generator_name
from qpeft.core.lora_init import check_not_stationary
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import device_of, in_vector_order
from qpeft.errors import ConfigError
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.attach.config import AttachedConfig
from qpeft.methods.attach.tensors import generated_slots, other_keys, value_of

_NOT_REPRODUCIBLE = ("corda", "loftq", "lora_ga")  # they depend on data, or change the base randomly
_CHANGE_BASE = (*_NOT_REPRODUCIBLE, "pissa", "olora")


def bind(
    model: PeftModel, config: GeneratorConfig, adapter_name: str | None
) -> tuple[str, AttachedConfig, Binding, dict[str, str]]:
    """The adapter's name, config and binding, and `other_keys`; raises ConfigError as `attach`, without changes."""
    name = _checked_name(model, config, adapter_name)
    if isinstance(model.base_model, BaseTuner) and name != next(iter(model.peft_config)):
        # PEFT does so for the first adapter only: Lily's layers would share tensors in one order of loading
        model.base_model._post_injection_hook(model.base_model.model, model.peft_config[name], name)
    found = in_vector_order(generated_slots(model, name), config.vector_order)
    slots = [slot for slot, _ in found]
    initial = [value_of(slot).detach().float().flatten().cpu() for slot in slots]
    init = SeededInit(config.seed)
    generator = config.make(torch.cat(initial), init)
    with torch.no_grad():
        check_not_stationary(slots, generator().split([value.numel() for value in initial]))
    attached = AttachedConfig.of(model.peft_config[name], config)
    bind_base(attached, model.get_base_model(), name, changes_base=_changes_base(model.peft_config[name]))
    attached.start_hash = init.hexdigest()
    attached.generated = [[slot.label, list(slot.shape)] for slot in slots]
    binding = Binding(
        generator.to(device_of(slots)), slots
    )  # removes the parameters: those that remain are not generated
    return name, attached, binding, other_keys(model, name, GeneratorHolder.container)


def check_keeps_base(host: PeftConfig) -> None:
    """Raise ConfigError if another adapter of this config would change the base that its neighbours were trained on."""
    if _changes_base(host):
        raise ConfigError(
            f"init_lora_weights='{getattr(host, 'init_lora_weights', '')}' changes the base model, and with it the "
            "outputs of the adapter that is on it; use a model of its own for each such adapter"
        )
    if getattr(host, "layer_replication", None):
        raise ConfigError(
            "layer_replication replaces the layers of the base model, and with them the adapters that are on it; use a "
            "model of its own for such an adapter"
        )


def _changes_base(host: PeftConfig) -> bool:
    init = getattr(host, "init_lora_weights", None)
    return isinstance(init, str) and init.startswith(_CHANGE_BASE)


def _checked_name(model: Any, config: Any, adapter_name: str | None) -> str:
    generator_name(config)  # raises ConfigError if it is not registered
    check_adapted(model)
    name = adapter_name or model.active_adapters[0]
    if name not in model.peft_config:
        raise ConfigError(f"the model has no adapter '{name}'; it has {', '.join(model.peft_config)}")
    holder = holder_of(model)
    if holder is not None and (holder is not model or name in holder.generators):
        raise ConfigError(f"adapter '{name}' is generated already; attach is for stock adapters")
    init = getattr(model.peft_config[name], "init_lora_weights", None)
    if isinstance(init, str) and (init in _NOT_REPRODUCIBLE or init.startswith("pissa_niter")):
        raise ConfigError(
            f"init_lora_weights='{init}' changes the base model in a way that cannot be reproduced on loading; "
            "use 'pissa' or 'olora', which depend on the weights only, or an initialization that keeps the base"
        )
    if isinstance(model.peft_config[name], AdaLoraConfig):
        raise ConfigError("AdaLoRA allocates ranks by the gradient of each parameter, so these cannot be generated")
    if getattr(model.peft_config[name], "coft", False):
        raise ConfigError("coft changes the parameters in a forward pass, so they cannot be generated; leave it unset")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ConfigError("the adapter is merged into the base model; call model.unmerge_adapter() first")
    return name
