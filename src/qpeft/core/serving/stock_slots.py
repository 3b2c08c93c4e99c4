"""Adapters of stock PEFT that are injected once and filled repeatedly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.config import GeneratedConfig
from qpeft.errors import ConfigError

_DORA = "DoRA"
_MIXED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # copies that PEFT mixes, from modules_to_save


class StockSlots:
    """Equal adapters on `base`, frozen, none of them active at first.

    Args:
        base: The base model; changed in place, as by PEFT.
        config: The config of such generated adapters.
        count: How many.
    """

    def __init__(self, base: nn.Module, config: GeneratedConfig, count: int) -> None:
        self.names = [f"slot{index}" for index in range(count)]
        self._not_mixed = not_mixed(base, config)
        self.model = _with_adapters(base, config, self.names)
        self._modules = adapted_modules(self.model)
        self._tensors = {name: _tensors(self.model, name) for name in self.names}
        tuner: Any = self.model.base_model
        tuner._enable_peft_forward_hooks = partial(self._selecting, tuner._enable_peft_forward_hooks)
        self.switch(None)

    @contextmanager
    def _selecting(self, select: Callable[..., Any], *args: Any, **options: Any) -> Iterator[None]:
        """PEFT's selection by `adapter_names`, which PEFT does not end if the forward pass raises."""
        before = [set(module._forward_pre_hooks) for module in self._modules]
        try:
            with select(*args, **options):
                yield
        finally:
            for module, kept in zip(self._modules, before, strict=True):
                for key in module._forward_pre_hooks.keys() - kept:
                    del module._forward_pre_hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    @torch.no_grad()
    def fill(self, slot: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, by their keys in a stock file, into the slot."""
        for key, tensor in self._tensors[slot].items():
            tensor.copy_(tensors[key])

    def switch(self, slot: str | None) -> None:
        """Make this slot the active adapter; None: no adapter."""
        names = [] if slot is None else [slot]
        if names != self.model.active_adapters:
            base_model: Any = self.model.base_model
            activate(self._modules, names)
            base_model.active_adapter = names

    def check_mixes(self, adapters: Collection[str]) -> None:
        """Raise ConfigError if PEFT cannot compute a batch of rows with these adapters, and of rows without one."""
        if self._not_mixed and (adapters or self._not_mixed != _DORA):
            raise ConfigError(
                f"PEFT does not mix adapters with {self._not_mixed} in a batch; use one adapter for all rows, with "
                "activate(name) or using(name)"
            )

    def check_not_merged(self) -> None:
        """Raise ConfigError if an adapter is merged into the base weights."""
        if any(getattr(module, "merged", False) for module in self._modules):
            raise ConfigError("an adapter is merged into the base model; call model.unmerge_adapter() first")


def not_mixed(base: nn.Module, config: PeftConfig) -> str | None:
    """The part of adapters with this config that PEFT does not mix in a batch, on a `base` without adapters."""
    names = tuple(getattr(config, "modules_to_save", None) or ())
    copies = (module for name, module in base.named_modules() if name.endswith(names))
    if kinds := sorted({type(module).__name__ for module in copies if not isinstance(module, _MIXED)}):
        return f"a trained copy of {kinds[0]} (modules_to_save)"
    if getattr(config, "target_parameters", None):
        return "experts (target_parameters)"
    return _DORA if getattr(config, "use_dora", False) else None


def adapted_modules(model: nn.Module) -> list[Any]:
    """The modules with adapters."""
    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def activate(modules: list[Any], names: list[str]) -> None:
    """PEFT's `set_adapter` without a traversal of the model, because nothing here is trained."""
    for module in modules:
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = list(names)
        else:
            module.set_adapter(names, inference_mode=True)


def _with_adapters(base: nn.Module, config: GeneratedConfig, names: list[str]) -> PeftModel:
    stock: list[Any] = [config.to_stock() for _ in names]
    for one in stock:
        one.inference_mode = True
    model: Any = get_peft_model(base, stock[0], adapter_name=names[0])
    for name, one in zip(names[1:], stock[1:], strict=True):
        model.add_adapter(name, one)
    return model.eval().requires_grad_(False)


def _tensors(model: Any, name: str) -> dict[str, Tensor]:
    """The adapter's tensors, not copied, by their keys in a stock file."""
    state = model.state_dict(keep_vars=True)
    return get_peft_model_state_dict(model, state, adapter_name=name, save_embedding_layers=False)
