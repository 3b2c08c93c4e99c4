"""The base class of tuners whose adapters stock PEFT does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from qpeft.core.adapter_form import AdapterForm, complete_state
from qpeft.core.base_digest import bind_base
from qpeft.core.config import own_copy
from qpeft.core.load_checks import check_adapter
from qpeft.errors import ConfigError


class OwnTuner(AdapterForm, BaseTuner):
    """A layer of `tuner_layer_cls` around each target module applies the active adapters to every row of a batch.

    A subclass defines the class attributes of `BaseTuner`, `own_kind` (see `AdapterForm`), and the three methods below.
    """

    def _set_targets(self, model: nn.Module, config: Any) -> None:
        """Set `target_modules` of `config` to modules of `model`; raise ConfigError if there are none."""
        raise NotImplementedError

    def _new_layer(self, target: nn.Module, name: str) -> nn.Module:
        """A layer without adapters around the module `target` called `name`."""
        raise NotImplementedError

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        """Add an adapter to the layer called `name`."""
        raise NotImplementedError

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, so that a config can be used again on another model
        config: Any = own_copy(self.peft_config[adapter_name])
        self._set_targets(model, config)
        self.peft_config[adapter_name] = config
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        bind_base(config, model, adapter_name)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, self.tuner_layer_cls) else self._new_layer(target, current_key)
        self._add_adapter(layer, adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version needs a weight, which a block lacks, and changes the adapter's dtype
        setattr(parent, child_name, new_module)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        state = complete_state(model, adapter_name, state_dict)
        return super()._get_adapter_state_dict(model, config, adapter_name, state, unwanted_adapter_names)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        current = {cls.current_key(key): tensor for key, tensor in state_dict.items()}
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, current)
        check_adapter(cls, model, adapter_name, state)
        return state

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "this method does not support adapter_names, a different adapter for each row of a batch; choose one "
                "for all rows with model.set_adapter(name)"
            )
        yield
