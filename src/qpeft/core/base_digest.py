"""A digest of the base model of an adapter, which recognizes the base in every floating-point precision.

Names and shapes of the adapted weights and a sample of their entries are hashed: the signs of the entries, the entries
as they are, and rounded to bfloat16, to float16 and to both. Two digests are of one base if the entries of one are a
rounding of those of the other.

    precision : signs : entries : bfloat16 : float16 : bfloat16, then float16 : float16, then bfloat16
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import BaseModelWarning, CheckpointError

_SAMPLE = 1024  # entries of each weight
_HASH = 12  # hexadecimal digits of each hash
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_BF, _F = torch.bfloat16, torch.float16
_QUANTIZED = "quantized"
_ROUNDINGS = ((), (_BF,), (_F,), (_BF, _F), (_F, _BF))  # more of them change nothing
_INTENDED = (
    ": the results are not those of its training. Load its own base model; or, if this one is intended, such as a "
    "fine-tuned or quantized copy, silence this warning with allow_other_base=True of qpeft.load or qpeft.AdapterPool, "
    "or with warnings.simplefilter('ignore', qpeft.errors.BaseModelWarning)"
)


def bind_base(config: SealedConfig, base: nn.Module, adapter_name: str, changes_base: bool = False) -> None:
    """Record the base in the config of an adapter on it, or compare it with the recorded one.

    Args:
        config: Of the adapter; a trainable one belongs to `base` from now on.
        base: The base model with the adapter.
        adapter_name: The adapter.
        changes_base: Whether the adapter's initialization changed the weights that it adapts.

    Raises:
        CheckpointError: as `check_base`.
    """
    found = digest(own_weights(base, adapter_name, changes_base))
    is_new = config.base_digest is None
    if not is_new and not check_base(config, found, name_of(base)) and not config.inference_mode:
        is_new, config.base_model_name_or_path = True, name_of(base)
    if is_new:
        config.base_digest = found


def check_base(config: SealedConfig, found: str | None, present: str | None, adapter: str = "this adapter") -> bool:
    """Whether an adapter belongs to the base model `present` with the digest `found`; True if one is unknown.

    Warns with BaseModelWarning if not. `adapter` names it in the message; if empty, there is no warning.

    Raises:
        CheckpointError: it does not, its values depend on the base, and none is quantized; or the recorded digest is
            damaged.
    """
    if config.base_digest is None or found is None or is_same(config.base_digest, found):
        return True
    recorded = config.base_model_name_or_path
    if recorded and present and recorded != present:
        problem = f"was trained on the base model {recorded!r}, and this one is {present!r}, with other weights"
    else:
        problem = f"was trained on other weights than those of this base model ({recorded or present or 'unnamed'})"
    if config.depends_on_base and not is_quantized(config.base_digest, found):
        raise CheckpointError(
            f"this adapter {problem}; its frames are those of its base, so load it there, or export it there with "
            "qpeft.export and load the exported adapter here"
        )
    if adapter:
        warnings.warn(BaseModelWarning(f"{adapter} {problem}{_INTENDED}"), stacklevel=2)
    return False


def name_of(base: nn.Module) -> str | None:
    """The hub id or folder from which transformers loaded the model."""
    return getattr(base, "name_or_path", None) or None


def own_weights(base: nn.Module, adapter_name: str, changes_base: bool = False) -> dict[str, Tensor]:
    """The matrices of the base that the adapter adapts, by their names without any adapter.

    If there are none, as with prefixes, or `changes_base`: the other matrices of the model without its heads, and
    without its embeddings, which grow with the vocabulary.
    """
    adapted: dict[str, Tensor] = {}
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer._get_available_adapters():
            adapted |= matrices(layer, name.replace(".base_layer", ""))
    if adapted and not changes_base:
        return adapted
    body = getattr(base, "base_model", base)
    place = next(name for name, module in base.named_modules() if module is body)
    adapted_or_grown = {*adapted, *(f"{n}.weight" for n, m in base.named_modules() if isinstance(m, nn.Embedding))}
    others = {name: weight for name, weight in matrices(body, place).items() if name not in adapted_or_grown}
    return {name: weight for name, weight in others.items() if "pooler" not in name}  # can be random, like a head


def matrices(module: Any, name: str = "") -> dict[str, Tensor]:
    """The parameters with two or more axes of `module`, called `name`, without those of adapters."""
    return {key: p.data for key, p in _base_parameters(module, name) if p.ndim > 1}


def _base_parameters(module: Any, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    elif isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    for own, parameter in module.named_parameters(recurse=False):
        yield f"{name}.{own}".lstrip("."), parameter
    for child, inner in module.named_children():
        yield from _base_parameters(inner, f"{name}.{child}".lstrip("."))


@torch.no_grad()
def digest(weights: Mapping[str, Tensor]) -> str | None:
    """The digest of these weights; None if there are none, or if some are not in memory or are sharded."""
    found = [weights[name] for name in sorted(weights)]
    if not found or any(not w.numel() or w.is_meta or hasattr(w, "__tensor_flatten__") for w in found):
        return None
    names = [[name, list(w.shape), "" if w.dtype in _FLOATS else str(w.dtype)] for name, w in weights.items()]
    packed = [_entries(w).contiguous().view(torch.uint8) for w in found if w.dtype not in _FLOATS]  # a quantized base
    start = json.dumps(sorted(names)).encode() + _gathered(packed).numpy().tobytes()
    sample = _gathered([_entries(w).float() for w in found if w.dtype in _FLOATS])
    rounded = [_rounded(sample, formats) for formats in _ROUNDINGS]
    values = [value.numpy().astype("<f4") for value in (torch.signbit(sample).float(), *rounded)]
    hashes = [hashlib.sha256(start + value.tobytes()).hexdigest()[:_HASH] for value in values]
    return ":".join([_format({w.dtype for w in found}, hashes[1:]), *hashes])


def _rounded(sample: Tensor, formats: Sequence[torch.dtype]) -> Tensor:
    for one in formats:
        sample = sample.to(one)
    return sample.float()


def _format(dtypes: set[torch.dtype], hashes: Sequence[str]) -> str:
    """The precision of weights: their dtype, or a lower one that contains all sampled values."""
    if not dtypes <= {*_FLOATS}:
        return _QUANTIZED
    if dtypes in ({torch.bfloat16}, {torch.float16}):
        return str(dtypes.pop()).removeprefix("torch.")
    exact, in_bfloat16, in_float16, *_ = hashes
    return "bfloat16" if exact == in_bfloat16 else "float16" if exact == in_float16 else "float32"


def _gathered(samples: Sequence[Tensor]) -> Tensor:
    """All samples on the CPU, moved there at once."""
    return torch.cat([sample.to(samples[0].device) for sample in samples]).cpu() if samples else torch.empty(0)


def _entries(weight: Tensor) -> Tensor:
    """Some entries of a weight, flat."""
    step = weight.numel() // _SAMPLE | 1  # odd: an even one can stay in one column
    if weight.is_contiguous():
        return weight.view(-1)[::step]
    places = torch.arange(0, weight.numel(), step, device=weight.device)
    return weight[torch.unravel_index(places, weight.shape)]  # a flat view would be a copy of the weight


def signs(digest: str | None) -> str | None:
    """The part of a digest that is equal in every precision."""
    return digest and digest.split(":")[1]


def is_quantized(*digests: str) -> bool:
    """Whether one of the digests is of quantized weights, which differ from those of the same base in full."""
    return any(one.startswith(_QUANTIZED) for one in digests)


def is_same(recorded: str, found: str) -> bool:
    """Whether two digests are of the same weights, in equal or different floating-point precisions.

    Raises CheckpointError if the `recorded` one is damaged.
    """
    parts = [str(one).split(":") for one in (recorded, found)]
    if len(parts[0]) != len(parts[1]):
        raise CheckpointError(f"the base_digest {recorded!r} in adapter_config.json is damaged; restore it")
    (format_a, signs_a, *rounded_a), (format_b, signs_b, *rounded_b) = parts
    if rounded_a[0] in rounded_b or rounded_b[0] in rounded_a:
        return True
    # neither is a rounding of the other, but both may be of the same weights in float32
    return signs_a == signs_b and {format_a, format_b} == {"bfloat16", "float16"}
