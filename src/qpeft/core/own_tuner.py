"""The base class of tuners of their own, whose adapters are saved, loaded and bound to their base
as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from qpeft.circuits.numerics import Float32ByDefault
from qpeft.core.base_digest import record_or_check_base
from qpeft.core.checkpoint import check_loaded
from qpeft.core.compact_state import complete_state
from qpeft.core.config import own_copy
from qpeft.core.embeddings import resized_embeddings
from qpeft.core.generator import State
from qpeft.core.generator_holder import holder_of
from qpeft.core.targets import check_called, in_layers, set_target_names
from qpeft.errors import ConfigError


class OwnTuner(BaseTuner):
    """A layer of `tuner_layer_cls` around each target module applies the active adapters to every
    row of a batch.

    A checkpoint has all of an adapter's tensors, or is refused. A subclass defines the class
    attributes of `BaseTuner`, and the methods that raise NotImplementedError here.

    Raises ConfigError for targets that do not exist or do not fit, and for a batch of several
    adapters.
    """

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        # a copy, so that a config can be used again on another model
        config: Any = own_copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        modules: dict[str, nn.Module] = {}  # of the base model, without adapters of this kind
        for name, module in model.named_modules():
            if name and f".{self.prefix}" not in name:
                name_in_base = name.replace(".base_layer", "")
                modules.setdefault(name_in_base, getattr(module, "base_layer", module))
        if config.target_modules is None:
            config.target_modules = self._default_targets(modules)
        set_target_names(model, config, modules)
        targets = [name for name in modules if check_target_module_exists(config, name)]
        if config.layers_to_transform is not None:
            config.target_modules = targets = in_layers(targets, config)
        for name in targets:
            self._check_target(config, name, modules[name])
        check_called(model, targets)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        record_or_check_base(config, model, adapter_name)

    @classmethod
    def _get_adapter_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: Any, *, adapter_name: str, state_dict: State, **others: Any
    ) -> State:
        # with a generator attached to it, these are the generated tensors alone
        is_given = holder_of(model) is None
        state = complete_state(model, adapter_name, state_dict, is_given=is_given)
        saved = super()._get_adapter_state_dict(
            model, adapter_name=adapter_name, state_dict=state, **others
        )
        if isinstance(model, PeftModel):
            # PEFT leaves out those of an embedding next to an adapted head
            rows = resized_embeddings(model, state)
            config: Any = model.peft_config[adapter_name]
            config.embeddings = [
                cls._remove_adapter_name_from_key(key, adapter_name) for key in rows
            ]
            saved |= rows
        return saved

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT removes the name only next to that of a tensor, not of one in a module of the adapter
        own = re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)
        return own if own != key else super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: State
    ) -> State:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        # PEFT silently leaves tensors that the file lacks at their initial values
        expected = complete_state(model, adapter_name, {})
        return check_loaded(state, expected, model, adapter_name, model.state_dict())

    def plan_sizes(self) -> dict[str, Any]:
        """As `Generator.plan_sizes`; called on the meta device."""
        return {}

    def _default_targets(self, modules: dict[str, nn.Module]) -> list[str] | str:
        """`target_modules` if the user gives none, of these modules; raise ConfigError if there are
        none.
        """
        raise NotImplementedError

    def _check_target(self, config: Any, name: str, module: nn.Module) -> None:
        """Raise an error if this module cannot be adapted."""

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        """Add an adapter to the layer called `name`."""
        raise NotImplementedError

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        config: Any,
        adapter_name: str,
        target: Any,
        name: str,
        parent: Any,
        current_key: str,
        **_: Any,
    ) -> None:
        kind: Any = self.tuner_layer_cls
        layer = target if isinstance(target, kind) else kind(target)
        with Float32ByDefault():
            self._add_adapter(layer, adapter_name, config, current_key)
        self._replace_module(parent, name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        # PEFT's own version needs a weight, which a block lacks, and changes the adapter's dtype
        setattr(parent, child_name, new_module)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: PEFT has no weighted sum of such adapters."""
        raise ConfigError(
            f"adapters of {type(self).__name__} have no weighted sum; train one on all data, or"
            " average their state dicts (get_peft_model_state_dict), if they have one seed"
        )

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            f"an adapter of {type(self).__name__} is no change of the weights, so it cannot be"
            " merged into them; keep it as a separate adapter, or remove it with model.unload()"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "this method does not support adapter_names, a different adapter for each row of a"
                " batch; choose one for all rows with model.set_adapter(name)"
            )
        yield
