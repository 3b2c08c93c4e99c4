"""The tensors of a stock adapter: those that a generator fills, and all others that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _get_tuner_state_dict_key_prefixes
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.slots import find_slots
from qpeft.errors import ConfigError

ADAPTER = "*"  # in saved names instead of the adapter's name, because it may be loaded under another


def generated_slots(model: PeftModel, adapter_name: str) -> list[tuple[Slot, Any]]:
    """The tensors of an adapter that `attach` generates, in PEFT's order, with the layer of each.

    Raises:
        ConfigError: no tensor is trainable, or several modules share one.
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
    """Within: the adapter is trainable as if it were active."""
    if model._is_prompt_learning or adapter_name in model.active_adapters:
        yield
        return
    model.set_requires_grad(adapter_name, True)
    try:
        yield
    finally:
        model.set_requires_grad(adapter_name, False)


def _refuse_shared(model: PeftModel, adapter_name: str, slots: list[Slot]) -> None:
    """A tensor that several modules share cannot be replaced everywhere by one view."""
    owners = {_memory(value_of(slot)): (slot.owner, slot.name) for slot in slots}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            owner, its_name = owners.get(_memory(parameter), (module, own))
            if owner is not module or its_name != own:
                kind = type(model.peft_config[adapter_name]).__name__.removesuffix("Config")
                tensor = f"{name}.{own}"
                raise ConfigError(
                    f"{kind} shares {tensor} between layers, so it cannot be generated; use another host, or an "
                    "option without shared tensors"
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
    """Modules inside a `modules_to_save` wrapper, which are not generated."""
    wrappers = (module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper))
    return {id(module) for wrapper in wrappers for module in wrapper.modules()}


def value_of(slot: Slot) -> nn.Parameter:
    value = slot.owner._parameters[slot.name]
    assert value is not None
    return value


def other_keys(model: PeftModel, adapter_name: str, generators: str) -> dict[str, str]:
    """What belongs to an adapter and is not generated: name in a compact checkpoint -> key in the model's state dict.

    PEFT puts everything of an adapter into containers under the adapter's name. What is trained outside of all
    containers, such as a bias of the base, is included; the modules below `generators` are not.
    """
    own = _places(model, adapter_name)
    foreign = {place for name in model.peft_config if name != adapter_name for place in _places(model, name)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    for key, tensor in model.state_dict().items():
        place = _under(key, own)
        is_own = place is not None or (key in trained and _under(key, foreign) is None)
        if not is_own or key.startswith(f"{generators}.") or (memory := _place_in_memory(tensor)) in seen:
            continue  # VeRA's layers share their projections: save one of the names
        seen.add(memory)
        found[_saved_name(key, place, adapter_name)] = key
    return found


def _places(model: PeftModel, adapter_name: str) -> set[str]:
    """Prefixes of the adapter's keys in the state dict."""
    places = set(_get_tuner_state_dict_key_prefixes(model, adapter_name)) | {f"prompt_encoder.{adapter_name}"}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            places.add(f"{name}.modules_to_save.{adapter_name}")
        if isinstance(module, TrainableTokensWrapper):
            places.add(f"{name}.token_adapter.trainable_tokens_delta.{adapter_name}")
    return places


def _under(key: str, places: set[str]) -> str | None:
    prefixes = accumulate(key.split("."), lambda start, part: f"{start}.{part}")
    return next((prefix for prefix in prefixes if prefix in places), None)


def _saved_name(key: str, place: str | None, adapter_name: str) -> str:
    if place is None or not place.endswith(f".{adapter_name}"):
        return key
    return place.removesuffix(adapter_name) + ADAPTER + key.removeprefix(place)


def _place_in_memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor, also on the meta device."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)
