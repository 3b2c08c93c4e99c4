"""A stock PEFT tuner whose adapter tensors are generated, and the object that owns the generators.

The owner, `Generators`, is in the tuner of a method of qpeft, or next to the host adapter of
`qpeft.attach`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.base_digest import bind_base
from qpeft.core.binding import Binding
from qpeft.core.checkpoint import check_tensors
from qpeft.core.config import GeneratedConfig, in_vector_order, own_copy
from qpeft.core.generator import CircuitModule, Generator
from qpeft.core.replication import is_sharded, refuse_sharded
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot, draw_initial, lora_slots
from qpeft.core.targets import check_not_tied, check_target_modules
from qpeft.errors import CheckpointError, ConfigError, QpeftError

CONTAINER = "qpeft_generator"  # attribute of the tuner, or of the PeftModel of `qpeft.attach`


class Generators(nn.ModuleDict):
    """The generator of each adapter, by the adapter's name.

    Args:
        base: The base model with the adapters.
        prefix: Of the generators' keys in the state dict of the PeftModel.
        read_by: The module whose forward pass reads the adapters.
    """

    def __init__(self, base: nn.Module, prefix: str, read_by: nn.Module) -> None:
        super().__init__()
        self.bindings: dict[str, Binding] = {}
        self.configs: dict[str, GeneratedConfig] = {}
        self.prefix = prefix
        self._base = (base,)  # not a submodule
        hook: Any = self._before_forward
        self.hook = read_by.register_forward_pre_hook(hook)

    def hold(
        self, adapter_name: str, config: GeneratedConfig, generator: Generator, slots: list[Slot]
    ) -> None:
        """Generate the tensors `slots` of the adapter from now on; the config records them."""
        config.generated = [[slot.label, list(slot.shape)] for slot in slots]
        parameter: Any = slots[0].owner._parameters[slots[0].name]
        # not on the meta device, because a generator always has values
        binding = Binding(generator.to("cpu" if parameter.is_meta else parameter.device), slots)
        self[adapter_name], self.bindings[adapter_name], self.configs[adapter_name] = (
            generator,
            binding,
            config,
        )

    def release(self) -> None:
        """Stop generating; the adapters' own parameters get the current values."""
        with self.exact():
            for binding in self.bindings.values():
                binding.release()
        self.hook.remove()

    def train_only(self, active: Any, inference_mode: bool | None = None) -> None:
        """Train the generators of these adapters, unless in inference mode, by default that of
        their configs.
        """
        for name, generator in self.items():
            frozen = self.configs[name].inference_mode if inference_mode is None else inference_mode
            generator.requires_grad_(name in active and not frozen)

    @torch.compiler.disable
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                "torch.nn.DataParallel copies the generated tensors without their gradient; use one"
                " device, or torchrun / accelerate launch"
            )
        base = self._base[0]
        if any(getattr(generator, "needs_fit", False) for generator in self.values()):
            layers = [
                m
                for m in base.modules()
                if isinstance(m, BaseTunerLayer) and not m.disable_adapters
            ]
            for name in {
                name for layer in layers for name in layer.active_adapters
            } & self.bindings.keys():
                self.refuse_unfitted(name)
        if not (shards := is_sharded(base)):
            refuse_sharded(module)
        for binding in self.bindings.values():
            if shards:
                binding.replicate(base)
            binding.refresh()

    def refuse_unfitted(self, adapter_name: str) -> None:
        """Raise ConfigError if the generator cannot be evaluated before `fit_frames`."""
        if getattr(self[adapter_name], "needs_fit", False):
            raise ConfigError(
                "this adapter acts in directions of the loss gradient, which are not known yet:"
                " call qpeft.fit_frames(model, batches) with calibration batches first (about 64"
                " blocks of training text)"
            )

    def invalidate(self) -> None:
        """Discard every generator's value: the next forward pass computes it again."""
        for binding in self.bindings.values():
            binding.invalidate()

    def refresh_detached(self) -> None:
        """Place the current values, as tensors without a graph."""
        for binding in self.bindings.values():
            binding.refresh_detached()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within: every computation is exact, whatever backend trains the adapter."""
        backends = {
            m: m.backend
            for m in self.modules()
            if isinstance(m, CircuitModule) and m.backend is not None
        }
        self.run_on(dict.fromkeys(backends))
        try:
            yield
        finally:
            self.run_on(backends)

    def run_on(self, backends: Mapping[CircuitModule, Any]) -> None:
        """Run each circuit on its backend from now on; None: the exact simulator."""
        for circuit, backend in backends.items():
            circuit.backend = backend
        if backends:
            self.invalidate()

    def check_not_tied(self, tuner: Any) -> None:
        """Raise TiedWeightError if merging would change another module; not if the adapter is
        merged.
        """
        if not any(
            module.merged for module in tuner.model.modules() if isinstance(module, BaseTunerLayer)
        ):
            check_not_tied(tuner.model, tuner.targeted_module_names)

    @contextmanager
    def merging(self, tuner: Any) -> Iterator[None]:
        """Within: PEFT can merge the adapters of `tuner` into the base, or undo it; the values are
        exact.
        """
        self.check_not_tied(tuner)
        with self.exact():
            self.refresh_detached()
            yield

    @contextmanager
    def keeping_latent(self) -> Iterator[None]:
        """Within: a saved adapter keeps its unquantized parameters, so that a run resumes exactly."""
        generators: list[Any] = list(self.values())
        for generator in generators:
            generator.latent = True
        try:
            yield
        finally:
            for generator in generators:
                generator.latent = False

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for binding in self.bindings.values():
            binding.follow(fn)
        return result

    def count_generated(self) -> int:
        """Generated parameters, without those that an export leaves out."""
        return sum(
            sum(binding.sizes) - binding.generator.n_unused for binding in self.bindings.values()
        )

    def stock_adapter(
        self, model: Any, adapter_name: str
    ) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
        """The stock config, the tensors by their keys in a stock file, and the counts and ranks of
        `ExportReport`.
        """
        self.refuse_unfitted(adapter_name)
        binding, stock = self.bindings[adapter_name], self.configs[adapter_name].to_stock()
        values, ranks = binding.generator.export(binding.values(), stock)
        counts = {"n_deployed": sum(value.numel() for value in values), "ranks": ranks}
        counts["n_trained"] = sum(p.numel() for p in binding.generator.parameters())
        return stock, self.stock_state(model, adapter_name, values), counts

    def stock_state(
        self, model: Any, adapter_name: str, values: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of the generated adapter, by their keys in a stock file; `model` is the
        PeftModel.

        `values` are those of the slots; by default the current ones.
        """
        binding = self.bindings[adapter_name]
        state = {
            key: value
            for key, value in model.state_dict().items()
            if not key.startswith(self.prefix)
        }
        paths: dict[int, list[str]] = {}  # a shared module is saved under each of its names
        for path, module in model.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        for slot, value in zip(binding.slots, values or binding.values(), strict=True):
            for path in paths[id(slot.owner)]:
                state[f"{path}.{slot.name}"] = value
        with described_by(model, adapter_name, self.configs[adapter_name].to_stock()):
            stock = get_peft_model_state_dict(
                model, state, adapter_name=adapter_name, save_embedding_layers=False
            )
        return {key: value for key, value in stock.items() if value.numel()}


def count_trainable(model: Any) -> int:
    """Trainable parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def complete_state(model: Any, adapter_name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with all tensors of the adapter, by their names in `model`.

    PEFT leaves out those with a part of their names that is the name of another adapter, such as
    "mlp" or "c".
    """
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name)
    if (
        _filter_state_dict_by_key_prefixes(dict(model.named_parameters()), prefixes).keys()
        <= state.keys()
    ):
        return state  # a state dict of a sharded model would need all processes
    return _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes) | state


def holder_of(model: Any) -> Generators | None:
    """The generators of a PeftModel; None if none of its adapters is generated."""
    return getattr(model, CONTAINER, None)


def is_compact(model: Any) -> bool:
    """Whether the saved adapters of this PeftModel are not those of its export: generated, or of a
    `LinearTuner`.
    """
    return holder_of(model) is not None or hasattr(model.base_model, "stock_adapter")


def has_stock_form(model: Any) -> bool:
    """Whether a stock PEFT adapter is equal to that of this PeftModel.

    Not if it has a tuner from outside PEFT whose tensors are not generated, unless this has a
    method `stock_problem` that finds none; the tuner of a host counts.
    """
    tuner = model.base_model
    if holder_of(model) is None and hasattr(tuner, "stock_problem"):
        return not tuner.stock_problem()
    is_stock = not isinstance(tuner, BaseTuner) or type(tuner).__module__.startswith("peft.")
    return is_stock or isinstance(tuner, GeneratedMixin)


@contextmanager
def described_by(model: Any, adapter_name: str, config: Any) -> Iterator[None]:
    """Within: the PeftModel has one adapter, with this config; PEFT saves and loads by the type in
    the config.
    """
    kept, model.peft_config = model.peft_config, {adapter_name: config}
    try:
        yield
    finally:
        model.peft_config = kept


def other_tensors(
    model: Any, adapter_name: str, stock: Any, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What is saved next to the generator: trained biases, and tensors of a host that are not
    generated, each once.
    """
    state = {key: value for key, value in state.items() if f"{CONTAINER}." not in key}
    found = _filter_state_dict_by_key_prefixes(
        state, _get_tuner_state_dict_key_prefixes(model, adapter_name)
    )
    found |= BaseTuner._get_learnable_bias_state_dict(model, state, stock)
    # VeRA's layers share their projections
    once = {
        (t.untyped_storage()._cdata, t.storage_offset(), t.shape): key
        for key, t in reversed(found.items())
    }
    return {key: found[key] for key in reversed(once.values())}


class CompactState(BaseTuner if TYPE_CHECKING else object):
    """Mixed in before a tuner class: PEFT saves and loads the generator instead of the tensors that
    it fills.
    """

    container = CONTAINER  # read when the class is registered with PEFT

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: Any,
    ) -> dict[str, Tensor]:
        holder: Any = holder_of(model)
        prefix, complete = (
            f"{holder.prefix}{adapter_name}.",
            complete_state(model, adapter_name, state_dict),
        )
        own = {k.removeprefix(prefix): v for k, v in complete.items() if k.startswith(prefix)}
        packed = holder[adapter_name].pack(own)
        state = _CompactTensors({prefix + k: v for k, v in packed.items()})
        dict.update(state, other_tensors(model, adapter_name, config.to_stock(), complete))
        return state

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        own = key.replace(f"{CONTAINER}.{adapter_name}.", f"{CONTAINER}.", 1)
        return own if own != key else super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        holder: Any = holder_of(model)
        generator, prefix, present = holder[adapter_name], holder.prefix, model.state_dict()
        unpacked = generator.unpack(
            {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        )
        check_tensors(unpacked, generator.state_dict())
        others = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
        others = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, others)
        # with bias="all" PEFT saves a second copy of the biases in modules_to_save, without the
        # adapter's name
        others = {k: v for k, v in others.items() if k in present or ".modules_to_save." not in k}
        expected = other_tensors(model, adapter_name, config.to_stock(), present)
        check_tensors(
            {k: v for k, v in others.items() if k in expected or k not in present}, expected
        )
        return {**others, **{f"{prefix}{adapter_name}.{k}": v for k, v in unpacked.items()}}


class _CompactTensors(dict[str, Tensor]):
    """Excludes base weights: PEFT adds the whole output head to the file if lm_head is a target."""

    def update(self, other: dict[str, Tensor], /) -> None:  # type: ignore[override]
        super().update({k: v for k, v in other.items() if ".base_layer." not in k})


class GeneratedMixin(CompactState, BaseTuner if TYPE_CHECKING else object):
    """Mixed in before a stock tuner, for example `class QPAModel(GeneratedMixin, LoraModel)`.

    The generators, one per adapter, are in `qpeft_generator`. They have the only trainable
    parameters; the stock layers contain plain tensors. The config makes the generators.
    """

    uses_shared_state = True

    @property
    def generators(self) -> Generators:
        """The generator of each adapter, by the adapter's name."""
        generators: Any = self._modules[CONTAINER]
        return generators

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        # a copy, because the binding records this adapter's tensors in it
        config: Any = own_copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        is_loaded = config.generated is not None
        config.read_files(model)
        if CONTAINER not in self._modules:
            self.add_module(
                CONTAINER, Generators(self.model, f"base_model.{CONTAINER}.", self.model)
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            check_target_modules(model, config)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self.generators.hold(adapter_name, config, *self._make_generator(adapter_name, config))
        except BaseException as error:
            self._undo_injection(adapter_name)
            for parameter in trained:
                parameter.requires_grad_(True)
            if (
                is_loaded
                and isinstance(error, ValueError)
                and not isinstance(error, CheckpointError)
            ):
                raise CheckpointError(
                    f"this adapter belongs to another base model: {error}"
                ) from error
            if isinstance(error, ValueError) and not isinstance(
                error, QpeftError
            ):  # of PEFT, such as on a target
                raise ConfigError(str(error)) from error
            raise
        self.generators.train_only(self.active_adapters)

    def _make_generator(
        self, adapter_name: str, config: GeneratedConfig
    ) -> tuple[Generator, list[Slot]]:
        init = SeededInit(config.seed)
        slots = in_vector_order(lora_slots(self.model, adapter_name), config)
        generator = config.make(slots, draw_initial(slots, config.drawn_init, init), init)
        bind_base(config, self.model, adapter_name)
        generator.use_base(self.model)
        return generator, slots

    def _undo_injection(self, adapter_name: str) -> None:
        """Restore the base model as it was before the adapter was injected."""
        if self.generators:
            super().delete_adapter(adapter_name)
        else:
            self.generators.hook.remove()
            for module in self.model.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    # so that unloading restores the original, not the trained copy
                    module._active_adapter = []
            super()._unload_and_optionally_merge(merge=False)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        for held in (self.generators, self.generators.bindings, self.generators.configs):
            del held[adapter_name]
        self.generators.train_only(self.active_adapters)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.generators.train_only(self.active_adapters, inference_mode)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.generators:
                self.generators[name].requires_grad_(requires_grad)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        with self.generators.merging(self):
            super().merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        with self.generators.merging(self):
            super().unmerge_adapter()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
            for name in self.generators:
                self.generators.refuse_unfitted(name)
            self.generators.check_not_tied(self)
        self.generators.release()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of generated adapters is not a generated adapter; qpeft.export each one"
            " and combine the stock adapters"
        )


def stock_key(label: str) -> str:
    """The key in a stock file of the tensor with this label of a slot."""
    # the key of DoRA's magnitude in PEFT's files lacks the ".weight" of its module
    return "base_model.model." + label.replace(
        "lora_magnitude_vector.weight", "lora_magnitude_vector"
    )
