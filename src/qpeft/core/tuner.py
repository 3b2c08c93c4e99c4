"""The mixin that turns a stock PEFT tuner into one whose adapter tensors are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qpeft.core.adapter_form import StockAdapter, complete_state
from qpeft.core.base_digest import bind_base
from qpeft.core.binding import Binding, Slot
from qpeft.core.config import GeneratedConfig, own_copy
from qpeft.core.generator import Generator
from qpeft.core.generator_holder import GeneratorHolder
from qpeft.core.load_checks import check_tensors
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import device_of
from qpeft.core.targets import check_rank, check_target_modules, exclude_classifier_head
from qpeft.core.tied_weights import check_not_tied
from qpeft.errors import CheckpointError, ConfigError, QpeftError

if TYPE_CHECKING:
    _Tuner = BaseTuner
else:
    _Tuner = object


class GeneratedMixin(GeneratorHolder, _Tuner):
    """Mixed in before a stock tuner, for example `class QPAModel(GeneratedMixin, LoraModel)`.

    The generators, one per adapter, are in `qpeft_generator`. They have the only trainable parameters; the stock layers
    contain plain tensors. A subclass defines `_build`.
    """

    uses_shared_state = True
    _refresh_handle: RemovableHandle

    def _build(self, adapter_name: str, config: Any, init: SeededInit) -> tuple[Generator, list[Slot]]:
        """A new generator for the injected adapter, and the tensors that it fills, in its order."""
        raise NotImplementedError

    # -- life of an adapter

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, because the binding records this adapter's tensors in it
        self.peft_config[adapter_name] = own_copy(self.peft_config[adapter_name])
        self.generated_config(adapter_name).read_files(model)
        exclude_classifier_head(model, self.peft_config[adapter_name])
        self._check_targets(model, self.peft_config[adapter_name])
        if self.container not in self._modules:
            self._begin_holding()
            self._refresh_handle = self.model.register_forward_pre_hook(self._before_forward)
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            binding = self._make_binding(adapter_name)
        except BaseException as error:
            self._undo_injection(adapter_name)
            for parameter in trained:
                parameter.requires_grad_(True)
            if isinstance(error, ValueError) and not isinstance(error, QpeftError):  # of PEFT, such as on a target
                raise ConfigError(str(error)) from error
            raise
        self._hold(adapter_name, binding)
        self._train_active_only()

    def _check_targets(self, model: nn.Module, config: Any) -> None:
        try:
            check_target_modules(model, config)
        except ConfigError as error:
            if config.generated is None or error.__cause__ is not None:  # a pattern is wrong, not the base model
                raise
            raise CheckpointError(f"this adapter belongs to another base model: {error}") from error

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]  as LoraModel's own does
        self,
        lora_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        **options: Any,
    ) -> None:
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        check_rank(lora_config, layer, current_key)
        stock: Any = super()
        stock._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **options)

    def _make_binding(self, adapter_name: str) -> Binding:
        config: Any = self.peft_config[adapter_name]
        init = SeededInit(config.seed)
        generator, slots = self._build(adapter_name, config, init)
        config.check_start(init.hexdigest())
        bind_base(config, self.model, adapter_name)
        config.start_hash = init.hexdigest()
        config.generated = [[slot.label, list(slot.shape)] for slot in slots]
        return Binding(generator.to(device_of(slots)), slots)

    def _undo_injection(self, adapter_name: str) -> None:
        """Restore the base model as it was before the adapter was injected."""
        if self._bindings:
            super().delete_adapter(adapter_name)
        else:
            self._refresh_handle.remove()
            for module in self.model.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    module._active_adapter = []  # so that unloading restores the original, not the trained copy
            super()._unload_and_optionally_merge(merge=False)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._let_go(adapter_name)
        self._train_active_only()

    def _check_ready(self) -> None:
        if any(m.disable_adapters for m in self.model.modules() if isinstance(m, BaseTunerLayer)):
            return
        for name in self._bindings.keys() & set(self.active_adapters):
            self._refuse_unfitted(name)

    def _refuse_unfitted(self, adapter_name: str) -> None:
        generator: Any = self.generators[adapter_name]
        if not getattr(generator, "needs_fit", False):
            return
        if generator.was_fitted_elsewhere:
            raise ConfigError(
                "this adapter was saved without its frames (store_frames=False): call qpeft.fit_frames(model, batches) "
                "with the batches it was trained with, or use the adapter that was exported from it"
            )
        raise ConfigError(
            "this adapter acts in directions of the loss gradient, which are not known yet: call "
            "qpeft.fit_frames(model, batches) with calibration batches first (about 64 blocks of training text)"
        )

    # -- which adapter trains

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._train_active_only(inference_mode)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.generators[name].requires_grad_(requires_grad)

    def _train_active_only(self, inference_mode: bool | None = None) -> None:
        for name, generator in self.generators.items():
            frozen = self.peft_config[name].inference_mode if inference_mode is None else inference_mode
            generator.requires_grad_(name in self.active_adapters and not frozen)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """As PEFT does for stock parameters: half-precision adapter tensors become float32."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        if autocast_adapter_dtype:
            self._bindings[adapter_name].widen_half_precision()

    # -- merging and unloading

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_tied_merge()
        with self.exact():
            self.refresh_detached()
            super().merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        with self.exact():
            self.refresh_detached()
            super().unmerge_adapter()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
            self._refuse_tied_merge()
            for name in self._bindings:
                self._refuse_unfitted(name)
        with self.exact():
            for binding in self._bindings.values():
                binding.release()
        self._refresh_handle.remove()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError("a generated adapter has no modified initial weights to subtract; use qpeft.export")

    def _refuse_tied_merge(self) -> None:
        if not any(module.merged for module in self.model.modules() if isinstance(module, BaseTunerLayer)):
            check_not_tied(self.model, self.targeted_module_names)

    def generated_config(self, adapter_name: str) -> GeneratedConfig:
        config: Any = self.peft_config[adapter_name]
        return config

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        self._refuse_unfitted(adapter_name)
        return super().stock_adapter(model, adapter_name)

    def stock_state(self, model: Any, adapter_name: str) -> dict[str, Tensor]:
        binding = self.binding(adapter_name)
        compact = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        state = {k: v for k, v in compact.items() if not k.startswith(f"base_model.{self.container}.")}
        return state | {stock_key(s.label): v for s, v in zip(binding.slots, binding.values(), strict=True)}

    # -- what is saved: the generator alone

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        prefix = f"base_model.{cls.container}.{adapter_name}."
        complete = complete_state(model, adapter_name, state_dict)
        own = {k.removeprefix(prefix): v for k, v in complete.items() if k.startswith(prefix)}
        packed = model.base_model.generators[adapter_name].pack(own)
        state = _CompactState({prefix + k: v for k, v in packed.items()})
        dict.update(state, cls._get_learnable_bias_state_dict(model, state_dict, config))
        return state

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        prefix = f"base_model.{cls.container}."
        if key.startswith(f"{prefix}{adapter_name}."):
            return prefix + key.removeprefix(f"{prefix}{adapter_name}.")
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        prefix = f"base_model.{cls.container}."
        own = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
        generator = model.base_model.generators[adapter_name]
        unpacked = generator.unpack({k.removeprefix(prefix): v for k, v in own.items()})
        check_tensors(unpacked, generator.state_dict())
        present = model.state_dict().keys()
        # with bias="all" PEFT saves a second copy of the biases in modules_to_save, without the adapter's name
        again = {k for k in state_dict if ".modules_to_save." in k} - present
        others = {k: v for k, v in state_dict.items() if k not in own and k not in again}
        if foreign := sorted(others.keys() - present):
            raise CheckpointError(
                f"the checkpoint contains tensors that this model lacks: {', '.join(foreign[:3])}; it is foreign or "
                "damaged"
            )
        return {**others, **{f"{prefix}{adapter_name}.{k}": v for k, v in unpacked.items()}}


class _CompactState(dict[str, Tensor]):
    """Excludes base weights: PEFT adds the whole output head to the file if lm_head is a target."""

    def update(self, other: dict[str, Tensor], /) -> None:  # type: ignore[override]
        super().update({k: v for k, v in other.items() if ".base_layer." not in k})


def stock_key(label: str) -> str:
    """The key in a stock file of the tensor with this label of a slot."""
    # the key of DoRA's magnitude in PEFT's files lacks the ".weight" of its module
    return "base_model.model." + label.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
