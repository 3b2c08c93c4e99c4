"""A stock PEFT tuner whose adapter tensors are generated."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qpeft.circuits.numerics import Float32ByDefault
from qpeft.core.base_digest import record_or_check_base
from qpeft.core.compact_state import CompactState
from qpeft.core.config import GeneratedConfig, in_vector_order, own_copy
from qpeft.core.generator import Generator
from qpeft.core.generator_holder import GeneratorHolder, holder_in
from qpeft.core.meta_model import refuse_adapted
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot, draw_initial, lora_slots
from qpeft.core.targets import check_called, check_target_modules
from qpeft.core.tied_head import tie_head
from qpeft.errors import CheckpointError, ConfigError, QpeftError


class GeneratedMixin(CompactState, BaseTuner if TYPE_CHECKING else object):
    """Mixed in before a stock tuner, for example `class QPAModel(GeneratedMixin, LoraModel)`.

    The generators, one per adapter, are in `generators`. They have the only trainable
    parameters; the stock layers contain plain tensors. The config makes the generators.

    Raises ConfigError for a target that PEFT refuses, and CheckpointError for an adapter of another
    base model.
    """

    uses_shared_state = True

    @property
    def generators(self) -> GeneratorHolder:
        """The generator of each adapter, by the adapter's name."""
        generators: Any = holder_in(self)
        return generators

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """As PEFT's; then the generator is made and bound. After an error the base is as before.

        Raises:
            ConfigError: a setting or a target does not fit the model, or it has another adapter.
            CheckpointError: a saved adapter is of another base.
        """
        # a copy, because the binding records this adapter's tensors in it
        config: Any = own_copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        # the table of generated tensors: only a config that was read from a folder has it here
        is_loaded = config.generated is not None
        config.fill_from_frame_file(model)
        if self.generators is None:
            refuse_adapted(model)  # the tensors of an adapter below would be generated, too
            # it registers itself as a module of this tuner
            GeneratorHolder(self, self.model, self.model, saved_path="base_model.")
        self.generators.check_name(adapter_name)
        # PEFT freezes the base, which is undone after an error, and makes the active adapters
        # trainable again, which is always undone for the generators
        in_base = [(p, p.requires_grad) for p in model.parameters()]
        in_generators = [(p, p.requires_grad) for p in self.generators.parameters()]
        active = self.active_adapter
        try:
            check_target_modules(model, config)
            # PEFT's LoRA, with trainable parameters of its own, which `hold` takes out again
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            check_called(model, self.targeted_module_names)
            base: Any = self.model
            for name in getattr(config, "target_modules_to_tie", None) or ():
                tie_head(base.get_submodule(name), base.get_input_embeddings(), adapter_name)
            generator, slots = self._make_generator(adapter_name, config)
            record_or_check_base(config, self.model, adapter_name)
            generator.use_base(self.model)
            self.generators.hold(adapter_name, config, generator, slots)
        except BaseException as error:
            self._undo_injection(adapter_name)
            self.active_adapter = active  # PEFT takes that of the first layer, which may have none
            _restore(in_base + in_generators)
            if not isinstance(error, ValueError) or isinstance(error, CheckpointError):
                raise
            if is_loaded:
                raise CheckpointError(
                    f"this adapter belongs to another base model: {error}"
                ) from error
            if isinstance(error, QpeftError):
                raise
            raise ConfigError(str(error)) from error  # of PEFT, such as on a target
        self.generators.train_only(self.active_adapters)
        _restore(in_generators)

    def _make_generator(
        self, adapter_name: str, config: GeneratedConfig
    ) -> tuple[Generator, list[Slot]]:
        """The generator of an adapter that PEFT has injected, and the tensors that it fills."""
        init = SeededInit(config.seed)
        with Float32ByDefault():
            own = lora_slots(self.model, adapter_name)
            slots = in_vector_order(own, config)
            initial = draw_initial(slots, config.drawn_init, init)  # (P,)
            generator = config.make(slots, initial, init)
        generator.is_reordered = slots != config.order(own)
        return generator, slots

    def _undo_injection(self, adapter_name: str) -> None:
        """Restore the base model as it was before the adapter was injected."""
        if self.generators:
            super().delete_adapter(adapter_name)
        else:
            self.generators.remove_hooks()
            for module in self.model.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    # so that unloading restores the original, not the trained copy
                    module._active_adapter = []
            super()._unload_and_optionally_merge(merge=False)

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's, and the generator of the adapter is dropped."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        self.generators.drop(adapter_name)
        if was_active:  # PEFT has activated another one
            self.generators.train_only(self.active_adapters, inference_mode=False)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's; of the generators those of the active adapters are trainable."""
        self.generators.unmerge_exactly(self)
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.generators.train_only(self.active_adapters, inference_mode)
        self.generators.place_stand_ins()

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        if not enabled:
            self.generators.unmerge_exactly(self)
        super()._enable_adapter_layers(enabled)
        self.generators.enable(enabled)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """As PEFT's, for the parameters of the generators."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self.generators:
                self.generators[name].requires_grad_(requires_grad)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, with the exact current values of the generators."""
        with self.generators.merging(self):
            super().merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        """As PEFT's."""
        with self.generators.merging(self):
            super().unmerge_adapter()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
            for name in self.generators:
                self.generators.refuse_unfitted(name)
        # PEFT can still refuse, such as a grouped convolution; then training can continue
        with self.generators.merging(self) if merge else nullcontext():
            unloaded = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        self.generators.release()
        return unloaded

    @classmethod
    def _convert_state_dict_for_initial_model(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError: the file would have no tensors."""
        raise ConfigError(
            "path_initial_model_for_weight_conversion is for stock adapters that changed the base at"
            " their start; export this one, which needs no conversion"
        )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: a weighted sum of generated adapters is not one."""
        raise ConfigError(
            "a weighted sum of generated adapters is not a generated adapter; qpeft.export each one"
            " and combine the stock adapters"
        )


def _restore(requires_grad: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, value in requires_grad:
        parameter.requires_grad_(value)
