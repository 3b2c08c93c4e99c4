"""Inputs and outputs of modules on real data, and the modules that an adapter changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.errors import UnsupportedTypeError
from qpeft.training.metrics import evaluation_mode

Batch = Mapping[str, Tensor]
Trace = dict[str, list[Tensor]]  # by module name, a tensor (B, T, d) for each batch


def find_blocks(base: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks, by name, first to last.

    Raises:
        UnsupportedTypeError: the model has no list of as many blocks as its config specifies.
    """
    config: Any = getattr(base, "config", None)
    n_layers = getattr(config.get_text_config() if config else None, "num_hidden_layers", None)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return {f"{name}.{number}": block for number, block in enumerate(module)}
    raise UnsupportedTypeError(
        f"{type(base).__name__} has no list of {n_layers} blocks; capacity needs one stack of blocks"
    )


def under_base_names(adapted: nn.Module) -> dict[str, nn.Module]:
    """The modules of an adapted model, or of a base, by their names in the base."""
    model: Any = adapted
    return dict((model.get_base_model() if hasattr(model, "get_base_model") else model).named_modules())


def find_changed(base: nn.Module, adapted: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Modules within the blocks that an adapter replaced, or whose own weights differ: of the base, and adapted.

    If linear maps are among them, only these are returned: full fine-tuning also changes norms and biases.
    """
    others = under_base_names(adapted)
    changed = {}
    for prefix, block in find_blocks(base).items():
        for name, module in block.named_modules(prefix=prefix):
            if (other := others.get(name)) is not None and _differs(module, other):
                changed[name] = (module, other)
    maps = {name: pair for name, pair in changed.items() if _is_map(pair[0])}
    return maps or changed


def record(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Batch], feed: Trace | None = None
) -> tuple[Trace, Trace]:
    """Inputs and outputs of `modules` while the model, in evaluation mode, reads `batches`.

    `feed` replaces the inputs of the modules; the inputs at virtual tokens in front are kept.
    """
    inputs: Trace = {name: [] for name in modules}
    outputs: Trace = {name: [] for name in modules}

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if feed is not None:
            given = feed[name][len(inputs[name])]
            x = torch.cat([x[:, : -given.shape[1]], given], 1)
        inputs[name].append(x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def after(name: str, output: Any) -> None:
        outputs[name].append(output[0] if isinstance(output, tuple) else output)

    handles = []
    for name, module in modules.items():
        handles += [
            module.register_forward_pre_hook(lambda _, a, k, name=name: before(name, a, k), with_kwargs=True),
            module.register_forward_hook(lambda _, __, output, name=name: after(name, output)),
        ]
    try:
        with evaluation_mode(model):
            for batch in batches:
                model(**{key: part for key, part in batch.items() if key != "labels"})
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def _differs(module: nn.Module, other: nn.Module) -> bool:
    if type(other) is not type(module):
        return True
    own, others = (list(m.parameters(recurse=False)) for m in (module, other))
    return any(not torch.equal(p.detach(), q.detach().to(p)) for p, q in zip(own, others, strict=True))


def _is_map(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2
