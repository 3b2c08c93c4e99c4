"""What belongs to an adapter and is not generated: trained modules and biases, a method's own buffers."""

from __future__ import annotations

from itertools import accumulate

from peft import PeftModel
from peft.tuners.tuners_utils import _get_tuner_state_dict_key_prefixes
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor

ADAPTER = "*"  # stands for the adapter's name, under which it need not be loaded


def keys_beside(model: PeftModel, adapter_name: str, generators: str) -> dict[str, str]:
    """Name in a compact folder -> key in the model's state dict.

    `generators` is where generators are held, which a folder has apart. PEFT puts everything of an adapter into
    containers, under the adapter's name; what is trained outside all containers, a bias of the base, counts too.
    """
    own = _places(model, adapter_name)
    foreign = {place for name in model.peft_config if name != adapter_name for place in _places(model, name)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    for key, tensor in model.state_dict().items():
        place = _under(key, own)
        is_own = place is not None or (key in trained and _under(key, foreign) is None)
        if not is_own or key.startswith(f"{generators}.") or (memory := _memory(tensor)) in seen:
            continue  # VeRA's layers share their projections: one of the names is enough
        seen.add(memory)
        found[_saved_name(key, place, adapter_name)] = key
    return found


def _places(model: PeftModel, adapter_name: str) -> set[str]:
    """Beginnings of the state dict keys that are the adapter's."""
    places = set(_get_tuner_state_dict_key_prefixes(model, adapter_name)) | {f"prompt_encoder.{adapter_name}"}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            places.add(f"{name}.modules_to_save.{adapter_name}")
        if isinstance(module, TrainableTokensWrapper):
            places.add(f"{name}.token_adapter.trainable_tokens_delta.{adapter_name}")
    return places


def _under(key: str, places: set[str]) -> str | None:
    beginnings = accumulate(key.split("."), lambda start, part: f"{start}.{part}")
    return next((beginning for beginning in beginnings if beginning in places), None)


def _saved_name(key: str, place: str | None, adapter_name: str) -> str:
    if place is None or not place.endswith(f".{adapter_name}"):
        return key
    return place.removesuffix(adapter_name) + ADAPTER + key.removeprefix(place)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """The same for two names of one tensor, also on the meta device."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)
