"""A digest of the base model of an adapter, which recognizes the base in every floating-point
precision.

Names and shapes of the adapted weights and a sample of their entries are hashed: the entries, and
their signs, which rounding keeps. Two digests are of one base if the entries are equal or, in two
precisions, the signs. In one precision equal signs are of a base that was rounded, as by merging
and unmerging: an adapter is loaded on it with a warning.

    data types : signs : entries
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.config import AdapterConfig
from qpeft.core.embeddings import resized, without_adapters
from qpeft.errors import BaseModelWarning, CheckpointError

_SAMPLE = 1024  # entries of each weight
_HASH = 12  # hexadecimal digits of each hash
_FLOATS = {"bfloat16", "float16", "float32", "float64"}
_INTENDED = (
    "; the results are not those of its training. Load its own base model; or, if this one is"
    " intended, such as a fine-tuned or quantized copy, ignore it by warnings.catch_warnings,"
    " category qpeft.errors.BaseModelWarning"
)


def record_or_check_base(config: AdapterConfig, base: nn.Module, adapter_name: str) -> None:
    """Record the base in the config of an adapter on it, or compare it with the recorded one by
    `check_base`.

    A trainable adapter belongs to `base` from now on.
    """
    present = digest(own_weights(base, adapter_name))
    name = name_of(base)
    if config.base_digest is None:
        config.base_digest = present
    elif not check_base(config, present, name) and not config.inference_mode:
        config.base_digest = present
        config.base_model_name_or_path = name


def check_base(
    config: AdapterConfig, present: str | None, name: str | None, adapter: str = "this adapter"
) -> bool:
    """Whether an adapter belongs to the base model called `name` with the digest `present`; True if
    one is unknown.

    If not, warns with BaseModelWarning, or raises CheckpointError if its values depend on the base,
    and none is quantized. Warns also of a base whose weights are rounded otherwise: by merging and
    unmerging, or in another dtype, if DoRA's magnitudes or LoRA-XS's frames are computed from them.
    """
    recorded = config.base_digest
    if recorded is None or present is None:
        return True
    if is_same(recorded, present):
        theirs, ours = (digest.partition(":")[0] for digest in (recorded, present))
        what = _computed_from_weights(config)
        if theirs != ours and what is not None:
            _warn(
                f"{adapter} was trained on its base model in {theirs}, and this one is in {ours}:"
                f" {what} of the base's weights, which are rounded otherwise. Load the base in"
                f" {theirs}, or export the adapter there"
            )
        return True
    if _equal_signs(recorded, present):
        _warn(
            f"{adapter} was trained on weights that differ a little from these; merge_adapter and"
            " unmerge_adapter round a base so. What is computed from them differs a little as well"
        )
        return True
    problem = (
        "was trained on other weights: its base model is"
        f" {config.base_model_name_or_path or 'unnamed'!r}, and this one is {name or 'unnamed'!r}"
    )
    if config.depends_on_base and not is_quantized(recorded, present):
        raise CheckpointError(
            f"this adapter {problem}; its frames are those of its base, so load it there, or export"
            " it there with qpeft.export and load the exported adapter here"
        )
    _warn(f"{adapter} {problem}{_INTENDED}")
    return False


def _computed_from_weights(config: AdapterConfig) -> str | None:
    """What of an adapter is computed again from the base's weights when it is loaded."""
    if getattr(config, "use_dora", False):
        return "DoRA's magnitudes start from norms"
    if getattr(config, "frame", None) == "weights":
        return "its frames are singular vectors"
    return None


def _warn(text: str) -> None:
    # without a registry, in which Python would drop the warning of a second adapter with an equal
    # text
    warnings.warn_explicit(text, BaseModelWarning, __file__, 0, registry={})


def name_of(base: nn.Module) -> str | None:
    """The hub id or folder from which transformers loaded the model."""
    return getattr(base, "name_or_path", None) or None


def own_weights(base: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The matrices of the base that the adapter adapts, by their names without any adapter; for a
    prompt all. Without the rows of a resized vocabulary that were added, which the adapter keeps.
    """
    weights: dict[str, Tensor] = {}
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer._get_available_adapters():
            weights |= matrices(layer, name.replace(".base_layer", ""))
    weights = weights or matrices(base)
    n_tokens, parameters = resized(base)
    places = {parameter.data_ptr() for parameter in parameters}
    return {name: w[:n_tokens] if w.data_ptr() in places else w for name, w in weights.items()}


def matrices(module: Any, name: str = "") -> dict[str, Tensor]:
    """The parameters with two or more axes of `module`, called `name`, without those of
    adapters.
    """
    module = without_adapters(module)
    own = module.named_parameters(recurse=False)
    weights = {f"{name}.{key}".lstrip("."): p.data for key, p in own if p.ndim > 1}
    for child, inner in module.named_children():
        weights |= matrices(inner, f"{name}.{child}".lstrip("."))
    return weights


@torch.no_grad()
def digest(weights: Mapping[str, Tensor]) -> str | None:
    """The digest of these weights; None if there are none, or if some are not in memory or are
    sharded.
    """
    tensors = [weights[name] for name in sorted(weights)]
    unread = [w for w in tensors if not w.numel() or w.is_meta or hasattr(w, "__tensor_flatten__")]
    if unread or not tensors:
        return None
    sampled = []
    for w in tensors:
        step = w.numel() // _SAMPLE | 1  # odd: an even one can stay in one column
        # a flat view may be a copy of the weight
        places = torch.unravel_index(torch.arange(0, w.numel(), step, device=w.device), w.shape)
        # of float8 no entries can be taken in torch 2.6
        entries_of = w.view(torch.uint8) if w.element_size() == 1 else w
        sampled.append(entries_of[places].view(w.dtype).float().to(tensors[0].device))
    entries = torch.cat(sampled).cpu()  # moved at once
    names = json.dumps(sorted([name, list(w.shape)] for name, w in weights.items())).encode()
    hashes = []
    for values in (torch.signbit(entries).float(), entries):
        content = names + values.numpy().astype("<f4").tobytes()
        hashes.append(hashlib.sha256(content).hexdigest()[:_HASH])
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in tensors})
    return ":".join(["+".join(dtypes), *hashes])


def is_quantized(*digests: str) -> bool:
    """Whether one of the digests is of quantized weights, which differ from those of the same base
    in full.
    """
    dtypes = [digest.partition(":")[0].split("+") for digest in digests]
    return not all(map(_FLOATS.issuperset, dtypes))


def is_same(recorded: str, present: str) -> bool:
    """Whether two digests are of the same weights, in equal or different floating-point precisions.

    Raises CheckpointError if the recorded one is damaged.
    """
    theirs = recorded.split(":") if isinstance(recorded, str) else []
    ours = present.split(":")
    if len(theirs) != len(ours):
        raise CheckpointError(
            f"the base_digest {recorded!r} in adapter_config.json is damaged; restore it"
        )
    if theirs[2] == ours[2]:
        return True
    return theirs[0] != ours[0] and _equal_signs(recorded, present)


def _equal_signs(recorded: str, present: str) -> bool:
    """Whether floating-point weights have equal signs: rounding keeps them, training does not."""
    signs, others = (digest.split(":")[1] for digest in (recorded, present))
    return signs == others and not is_quantized(recorded, present)
