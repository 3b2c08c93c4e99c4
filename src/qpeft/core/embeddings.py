"""The embedding layers of a base whose vocabulary was resized: their rows belong to the adapter.

`resize_token_embeddings` draws new rows, which nobody else has. Like stock PEFT, a saved adapter
therefore contains the layers of a base with another vocabulary than the one that it was loaded
from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

# the name of a parameter in a wrapper: module, infix, parameter
_WRAPPED = re.compile(r"(.*?)(\.token_adapter\.base_layer|\.original_module|\.base_layer)(\.[^.]+)")


class Resized(NamedTuple):
    """What was resized of a base, if its vocabulary was."""

    # rows of the model that the base was loaded from; 0: unknown. Without parameters nothing reads it
    n_tokens: int
    parameters: list[nn.Parameter]  # of the embedding and of the head, with a row for each token


def resized(base: Any) -> Resized:
    """The embedding layers of `base`, without their adapters, if its vocabulary is another than
    that of the model it was loaded from; otherwise without parameters.

    If that model's config is not on this machine, as of a base that was made in memory,
    `_remembered_vocabulary` stands for it; nothing is downloaded.
    """
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "get_text_config"):  # no model of transformers
        return Resized(0, [])
    present = getattr(config.get_text_config(), "vocab_size", None)
    try:
        original = type(config).from_pretrained(base.name_or_path, local_files_only=True)
        n_tokens = original.get_text_config().vocab_size
    except (AttributeError, OSError, ValueError):  # no such folder, or a vision model
        n_tokens = _remembered_vocabulary(base, present)
    if n_tokens == present:
        return Resized(0, [])
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    plain = [without_adapters(layer) for layer in layers if layer is not None]
    parameters = [parameter for layer in plain for parameter in layer.parameters()]
    return Resized(n_tokens or 0, parameters)


def _remembered_vocabulary(base: Any, present: int | None) -> int | None:
    """The rows before `resize_token_embeddings`, which sets `vocab_size` of the model and of its
    config alone.

    Its parts keep theirs. If they have none, the number of new rows is unknown: 0.
    """
    for name, module in base.named_modules():
        if name and "vocab_size" in vars(module):
            return module.vocab_size
    return 0 if "vocab_size" in vars(base) else present


def without_adapters(module: Any) -> nn.Module:
    """The module of the base model that PEFT has wrapped as `module`."""
    while isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        is_tuner = isinstance(module, BaseTunerLayer)
        module = getattr(module, "base_layer" if is_tuner else "original_module")
    return module


def _base_of(model: Any) -> Any:
    """Of a model into which PEFT has injected the adapter, itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def of_embeddings(model: Any, keys: Iterable[str]) -> set[str]:
    """Those of the `keys` of a PeftModel's state dict that belong to the embedding or to the head of
    its base. PEFT saves no other weights of a base with an adapter, but trained biases, and those
    that belong to a resized vocabulary.
    """
    base = _base_of(model)
    layers = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):  # it has none
            layers.append(getattr(base, name)())
    of_layers = tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is layer for layer in layers)
    )
    return {key for key in keys if key.startswith(of_layers)}


def resized_embeddings(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The resized parameters, tied ones once: those in `state`, the state dict of the PeftModel, or
    of the model where it has only what is trained.
    """
    wanted = {id(parameter) for parameter in resized(_base_of(model)).parameters}
    present = [(name, p) for name, p in model.named_parameters() if id(p) in wanted]
    return {name: state.get(name, parameter.detach()) for name, parameter in present}


def stock_embeddings(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`resized_embeddings` by their keys in the file of a stock adapter that consists of `tensors`.

    Layers that it does not adapt are not wrapped there: without an adapter in use, or by another
    adapter of `model`.
    """
    by_key = {}
    for key, tensor in resized_embeddings(model, model.state_dict()).items():
        wrapped = _WRAPPED.fullmatch(key)
        if wrapped and not any(name.startswith(f"{wrapped[1]}.") for name in tensors):
            key = wrapped[1] + wrapped[3]
        by_key[key] = tensor
    return by_key
