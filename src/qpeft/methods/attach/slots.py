"""The tensors of a stock adapter that a generator can fill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.slots import find_slots
from qpeft.errors import ConfigError


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
        found = [(slot, layer) for slot, layer in found if value_of(slot).requires_grad]
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
    owners = {_memory(value_of(slot)): (slot.owner, slot.name) for slot in slots}
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


def value_of(slot: Slot) -> nn.Parameter:
    """The parameter in the slot."""
    value = slot.owner._parameters[slot.name]
    assert value is not None
    return value
