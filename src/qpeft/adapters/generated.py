"""What a PEFT tuner needs so that a generator, and not the optimiser, writes its adapter tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qpeft.adapters.binding import Binding, Slot
from qpeft.adapters.targets import check_target_modules
from qpeft.adapters.tied import check_not_tied
from qpeft.errors import CheckpointError, ConfigError
from qpeft.generators.base import Generator
from qpeft.generators.features import CircuitFeature
from qpeft.generators.seeded_start import SeededStart

if TYPE_CHECKING:
    _Tuner = BaseTuner
else:
    _Tuner = object


class GeneratedMixin(_Tuner):
    """Mixed in before a stock tuner, for example `class QPAModel(GeneratedMixin, LoraModel)`.

    The generators sit in `qpeft_generator`, one per adapter, and are the only trainable parameters; the stock
    layers see plain tensors. A subclass supplies `_build`.
    """

    uses_shared_state = True
    container = "qpeft_generator"
    _bindings: dict[str, Binding]
    _refresh_handle: RemovableHandle

    def _build(self, adapter_name: str, config: Any, start: SeededStart) -> tuple[Generator, list[Slot]]:
        """A new generator for the adapter just injected, and the tensors that it fills, in its order."""
        raise NotImplementedError

    # -- life of an adapter

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, so that a config can be used again: what binding records in it belongs to this adapter alone
        self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        self._check_targets(model, self.peft_config[adapter_name])
        if self.container not in self._modules:
            setattr(self, self.container, nn.ModuleDict())
            self._bindings = {}
            self._refresh_handle = self.model.register_forward_pre_hook(self._before_forward)
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            binding = self._make_binding(adapter_name)
        except BaseException:
            self._undo_injection(adapter_name)
            for parameter in trained:
                parameter.requires_grad_(True)
            raise
        self.generators[adapter_name] = binding.generator
        self._bindings[adapter_name] = binding
        self._train_active_only()

    def _check_targets(self, model: nn.Module, config: Any) -> None:
        try:
            check_target_modules(model, config)
        except ConfigError as error:
            if config.generated is None:
                raise
            raise CheckpointError(f"this adapter belongs to another base model: {error}") from error

    def _make_binding(self, adapter_name: str) -> Binding:
        config: Any = self.peft_config[adapter_name]
        start = SeededStart(config.seed)
        generator, slots = self._build(adapter_name, config, start)
        config.check_start(start.hexdigest())
        config.start_hash = start.hexdigest()
        config.generated = [[slot.label, list(slot.shape)] for slot in slots]
        return Binding(generator.to(_device(slots)), slots)

    def _undo_injection(self, adapter_name: str) -> None:
        """Leave the base model as if the adapter had never been asked for."""
        if self._bindings:
            super().delete_adapter(adapter_name)
        else:
            self._refresh_handle.remove()
            for module in self.model.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    module._active_adapter = []  # unloading then gives the original back, not the copy to train
            super()._unload_and_optionally_merge(merge=False)

    @property
    def generators(self) -> nn.ModuleDict:
        """The generator of each adapter, by the adapter's name."""
        generators = self._modules[self.container]
        assert isinstance(generators, nn.ModuleDict)
        return generators

    def binding(self, adapter_name: str) -> Binding:
        """What connects the adapter's generator with its tensors."""
        return self._bindings[adapter_name]

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._bindings.pop(adapter_name)
        del self.generators[adapter_name]
        self._train_active_only()

    @torch.compiler.disable
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                "torch.nn.DataParallel copies the generated tensors without their gradient; "
                "use one device, or torchrun / accelerate launch"
            )
        for name, binding in self._bindings.items():
            if getattr(binding.generator, "needs_fit", False) and name in self.active_adapters:
                self._refuse_unfitted(binding.generator)
            binding.refresh()

    def _refuse_unfitted(self, generator: Any) -> None:
        if any(m.disable_adapters for m in self.model.modules() if isinstance(m, BaseTunerLayer)):
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

    def invalidate(self) -> None:
        """Forget every generator's evaluation: the next forward makes a new one."""
        for binding in self._bindings.values():
            binding.invalidate()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within: circuits on the exact simulator, whatever backend they train on; nothing else changes."""
        features = [m for m in self.generators.modules() if isinstance(m, CircuitFeature)]
        backends = [feature.backend for feature in features]
        if not any(backends):
            yield
            return
        for feature in features:
            feature.backend = None
        self.invalidate()
        try:
            yield
        finally:
            for feature, backend in zip(features, backends, strict=True):
                feature.backend = backend
            self.invalidate()

    @contextmanager
    def keeping_latent(self) -> Iterator[None]:
        """Within: a saved adapter keeps its unquantised numbers, from which training can go on as if never stopped."""
        generators: list[Any] = list(self.generators.values())
        for generator in generators:
            generator.latent = True
        try:
            yield
        finally:
            for generator in generators:
                generator.latent = False

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for binding in self._bindings.values():
            binding.follow(fn)
        return result

    # -- merging and leaving

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_tied_merge()
        with self.exact():
            self._refresh_detached()
            super().merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        with self.exact():
            self._refresh_detached()
            super().unmerge_adapter()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._refuse_tied_merge()
            for binding in self._bindings.values():
                if getattr(binding.generator, "needs_fit", False):
                    self._refuse_unfitted(binding.generator)
        with self.exact():
            for binding in self._bindings.values():
                binding.release()
        self._refresh_handle.remove()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of generated adapters is not a generated adapter; "
            "qpeft.export each one and combine the stock adapters"
        )

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError("a generated adapter has no mutated start to subtract; qpeft.export writes a stock LoRA")

    def _refuse_tied_merge(self) -> None:
        if not any(module.merged for module in self.model.modules() if isinstance(module, BaseTunerLayer)):
            check_not_tied(self.model, self.targeted_module_names)

    def _refresh_detached(self) -> None:
        with torch.no_grad():
            for binding in self._bindings.values():
                binding.refresh()

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
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
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
        _check_tensors(unpacked, generator.state_dict())
        others = {k: v for k, v in state_dict.items() if k not in own}
        return {**others, **{f"{prefix}{adapter_name}.{k}": v for k, v in unpacked.items()}}


class _CompactState(dict[str, Tensor]):
    """Keeps base weights out: PEFT adds the whole output head to the file when lm_head is a target."""

    def update(self, other: dict[str, Tensor], /) -> None:  # type: ignore[override]
        super().update({k: v for k, v in other.items() if ".base_layer." not in k})


def _device(slots: list[Slot]) -> torch.device:
    """Where the adapter lives; the CPU if that is the meta device: a generator always has real numbers."""
    parameter = slots[0].owner._parameters[slots[0].name]
    assert parameter is not None
    return torch.device("cpu") if parameter.is_meta else parameter.device


def _check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"the checkpoint does not hold this generator: missing {missing or 'nothing'}, "
            f"unknown {surplus or 'nothing'}; it is damaged or was written with other settings"
        )
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise CheckpointError(
                f"the checkpoint's {name} has shape {list(found[name].shape)}, expected {list(value.shape)}; "
                "it was written with other settings or for another model"
            )
        if name == "fingerprint" and not torch.equal(found[name].cpu(), value.cpu()):
            raise CheckpointError(
                "the checkpoint was trained from another start or with other settings (seed, scales, activation, ...); "
                "build the adapter with the settings in its adapter_config.json, or load it with qpeft.load"
            )
        if not torch.isfinite(found[name]).all():
            raise CheckpointError(f"the checkpoint's {name} contains NaN or Inf; use an earlier checkpoint")


def find_slots(model: nn.Module, adapter_name: str, layer_class: type[BaseTunerLayer]) -> list[tuple[Slot, Any]]:
    """The adapter's tensors in PEFT's order, each once, with the tuner layer that holds it."""
    found: list[tuple[Slot, Any]] = []
    seen: set[int] = set()
    for module_name, layer in model.named_modules():
        if not isinstance(layer, layer_class):
            continue
        for container_name in layer.adapter_layer_names:
            for owner, name, label in _parameters(getattr(layer, container_name, None), adapter_name):
                parameter = owner._parameters[name]
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                full = ".".join(filter(None, (module_name, container_name, label)))
                found.append((Slot(owner, name, full, parameter.shape, parameter.dtype), layer))
    return found


def _parameters(container: Any, adapter_name: str) -> list[tuple[nn.Module, str, str]]:
    """Owner, attribute and label of each parameter that `container` holds for the adapter."""
    if not isinstance(container, (nn.ModuleDict, nn.ParameterDict)) or adapter_name not in container:
        return []
    if isinstance(container, nn.ParameterDict):
        return [(container, adapter_name, "")]
    return [
        (module, name, ".".join(filter(None, (path, name))))
        for path, module in container[adapter_name].named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]
