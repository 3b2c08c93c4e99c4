"""The holder of the generators of a PeftModel, one per adapter.

It is a module in the tuner of a method of qpeft, or next to the host adapter of `qpeft.attach`, so
that PyTorch moves and counts the generators, and the optimizer finds their parameters. Its hooks on
the base call the `Binding` of each adapter (core/binding.py) before and after a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.binding import Binding
from qpeft.core.config import GeneratedConfig
from qpeft.core.generator import (
    CircuitModule,
    Generator,
    State,
    circuits_in,
    exact_circuits,
)
from qpeft.core.half_precision import measured_merge
from qpeft.core.replication import copy_buffers_in_ddp, is_sharded, refuse_sharded
from qpeft.core.slots import Slot
from qpeft.core.stock_adapter import StockAdapter
from qpeft.core.targets import check_not_tied
from qpeft.core.tied_head import TransposedFactor
from qpeft.errors import ConfigError

CONTAINER = "qpeft_generator"  # in the keys of a file; in a model with the prefix of its tuner


class _Home(NamedTuple):
    """Where a module with a generated tensor is: child `key` of `parent`."""

    parent: nn.Module
    key: str
    module: nn.Module

    @classmethod
    def of(cls, module: nn.Module, base: nn.Module) -> _Home | None:
        """None for a module outside of `base`, such as a prompt."""
        children = (
            cls(parent, key, child)
            for parent in base.modules()
            for key, child in parent.named_children()
            if child is module
        )
        return next(children, None)

    def check(self) -> None:
        """Raise ConfigError if somebody has replaced the module: the layers would apply the new one,
        and train it, and the generator would reach nothing.
        """
        present = self.parent._modules.get(self.key)
        if present is self.module or present is None:
            return
        # a wrapper, such as a compiled module, keeps it inside
        if not any(module is self.module for module in present.modules()):
            raise ConfigError(
                "somebody has replaced modules with tensors that the adapter's generator computes,"
                " such as lora_A: as peft's prepare_model_for_compiled_hotswap does, or a"
                " quantization of all linear layers; export the adapter, and change the exported one"
            )


def _check_rules(generator: Generator) -> None:
    """Raise ConfigError if a generator of somebody's own is random, or cannot be trained: exports
    and gradients would be of other values than the layers'.
    """
    if type(generator).__module__.partition(".")[0] == "qpeft":  # tests show it
        return
    name = type(generator).__name__
    with exact_circuits(), torch.enable_grad():
        first, second = generator(), generator()
    if not torch.equal(first, second):
        raise ConfigError(
            f"two evaluations of {name} differ: draw no random numbers in forward, as dropout does,"
            " and change no buffer there"
        )
    if any(p.requires_grad for p in generator.parameters()) and not first.requires_grad:
        raise ConfigError(
            f"the output of {name} has no gradient: forward must neither detach it nor leave torch"
        )


class GeneratorHolder(nn.ModuleDict):
    """The generator of each adapter, by the adapter's name.

    Hooks of the base keep the adapters' tensors up to date: they evaluate before a forward pass, and
    leave stand-ins behind it, for whoever calls a part of the base alone.

    Args:
        owner: The tuner, or a PeftModel with a prompt; the generators become one of its modules.
        base: The base model with the adapters.
        read_by: The module whose forward pass reads the adapters.
        saved_path: Of the generators in a file.
    """

    def __init__(
        self, owner: nn.Module, base: nn.Module, read_by: nn.Module, saved_path: str
    ) -> None:
        super().__init__()
        self.bindings: dict[str, Binding] = {}
        self.configs: dict[str, GeneratedConfig] = {}
        self.backend_jobs: Any = None  # of the backend that `qpeft.set_backend` has chosen
        # whether each parameter was trained before the adapters were disabled; None: they are not
        self._trained: dict[nn.Parameter, bool] | None = None
        name = CONTAINER
        path = ""  # of the owner in the PeftModel
        if isinstance(owner, BaseTuner):
            # Names of a tuner's parameters contain its prefix, such as lora_. By this others, such
            # as TRL for vLLM, recognize them.
            name = f"{owner.prefix}{CONTAINER}"
            path = "base_model."
        # the layer that was called without the base, with tensors placed for it; in a tuple, since
        # PyTorch makes a module that is set here one of the generators
        self._layer: tuple[nn.Module, ...] = ()
        owner.add_module(name, self)
        self.prefix = f"{path}{name}."  # of the keys in the state dict of the PeftModel
        self.saved_prefix = f"{saved_path}{CONTAINER}."  # of the keys in a file
        self._base = (base,)  # not a submodule
        self._homes: dict[str, _Home] = {}  # of the first generated tensor of each adapter
        self._is_copied = False  # whether all processes have the buffers of the first one
        before: Any = self._before_forward
        after: Any = self._after_forward
        self.hooks = [
            read_by.register_forward_pre_hook(before),
            read_by.register_forward_hook(after, always_call=True),
        ]
        if getattr(getattr(read_by, "config", None), "is_encoder_decoder", False):
            encoder: Any = read_by
            before_encoder: Any = self._before_encoder
            self.hooks.append(encoder.get_encoder().register_forward_pre_hook(before_encoder))

    def hold(
        self, adapter_name: str, config: GeneratedConfig, generator: Generator, slots: list[Slot]
    ) -> None:
        """Generate the tensors `slots` of the adapter from now on; the config records them."""
        self.check_name(adapter_name)
        # saved with the adapter: a load compares it with the tensors of its base (in_vector_order)
        config.generated = [[slot.label, list(slot.shape)] for slot in slots]
        if self.backend_jobs is not None:
            for circuit in circuits_in(generator):
                circuit.backend = circuit.run_on(self.backend_jobs)
        parameter: Any = slots[0].owner._parameters[slots[0].name]
        # not on the meta device, because a generator always has values
        binding = Binding(generator.to("cpu" if parameter.is_meta else parameter.device), slots)
        _check_rules(generator)
        self[adapter_name] = generator
        self.bindings[adapter_name] = binding
        self.configs[adapter_name] = config
        home = _Home.of(slots[0].owner, self._base[0])
        if home is not None:
            self._homes[adapter_name] = home

    def check_name(self, adapter_name: str) -> None:
        """Raise ConfigError if a module cannot have the name of this new adapter."""
        if adapter_name not in self and hasattr(self, adapter_name):
            raise ConfigError(
                f"an adapter cannot be called {adapter_name!r}, which is a name inside of PyTorch's"
                " modules; choose another adapter_name"
            )

    def serve_layers(self, base: nn.Module) -> None:
        """Give PEFT's layers in `base` tensors, not stand-ins, also where they are called without
        the base: LoHa and RandLora pass theirs to autograd Functions, which would lose the gradient.
        """
        before: Any = self._before_layer
        after: Any = self._after_layer
        for layer in base.modules():
            if isinstance(layer, BaseTunerLayer):
                self.hooks.append(layer.register_forward_pre_hook(before))
                self.hooks.append(layer.register_forward_hook(after, always_call=True))

    def drop(self, adapter_name: str) -> None:
        """Remove the generator of an adapter that no longer exists."""
        del self[adapter_name]
        del self.bindings[adapter_name]
        del self.configs[adapter_name]
        self._homes.pop(adapter_name, None)

    def release(self) -> None:
        """Stop generating; the adapters' own parameters get the current values."""
        with self.exact():
            for binding in self.bindings.values():
                binding.release()
        self.remove_hooks()

    def remove_hooks(self) -> None:
        """Let forward passes be, as no adapter is left."""
        for handle in self.hooks:
            handle.remove()

    def train_only(self, active: Any, inference_mode: bool | None = None) -> None:
        """Train the generators of these adapters, unless in inference mode, by default that of
        their configs.
        """
        for name, generator in self.items():
            frozen = self.configs[name].inference_mode if inference_mode is None else inference_mode
            generator.requires_grad_(name in active and not frozen)
        if self._trained is not None:  # while PEFT's layers are disabled
            self._trained = None
            self.enable(False)

    def enable(self, enabled: bool) -> None:
        """Let the generators follow PEFT's layers: as long as these are disabled, no parameter is
        trained, and no forward pass evaluates.
        """
        if enabled:
            for parameter, is_trained in (self._trained or {}).items():
                parameter.requires_grad_(is_trained)
            self._trained = None
        elif self._trained is None:
            self._trained = {p: p.requires_grad for p in self.parameters()}
            self.requires_grad_(False)

    @torch.compiler.disable
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                "torch.nn.DataParallel copies the generated tensors without their gradient; use one"
                " device, or torchrun / accelerate launch"
            )
        if self._trained is not None:
            return
        for home in self._homes.values():
            home.check()
        base = self._base[0]
        if any(getattr(generator, "needs_fit", False) for generator in self.values()):
            for name in _adapters_in_use(base) & self.keys():
                self.refuse_unfitted(name)
        # in training alone, which all processes do; one may evaluate without the others
        if not self._is_copied and self.training and torch.is_grad_enabled():
            self._is_copied = copy_buffers_in_ddp(self)
            if self._is_copied:
                for generator in self.values():
                    generator.take_fingerprint()  # type: ignore[operator]
                self.invalidate()
        base_is_sharded = is_sharded(base)
        if not base_is_sharded:
            refuse_sharded(module)
        for binding in self.bindings.values():
            if base_is_sharded:
                binding.replicate(base)
            binding.refresh()

    @torch.compiler.disable
    def _before_encoder(self, module: nn.Module, args: Any) -> None:
        """`generate` calls the encoder on its own. On a CPU stand-ins serve that, unless Ctrl-C came
        into a forward pass, after which PyTorch calls no hook.
        """
        bindings = self.bindings.values()
        if not all(binding.is_on_cpu and binding.has_stand_ins for binding in bindings):
            before: Any = self._before_forward
            before(module, args)

    @torch.compiler.disable
    def _after_forward(self, *_: Any) -> None:
        """From now on somebody may write into the parameters, and call a part of the base alone.

        On an accelerator the part does not notice: a comparison of values would wait for all work.
        """
        for binding in self.bindings.values():
            if binding.is_on_cpu:
                binding.place_stand_ins()

    @torch.compiler.disable
    def _before_layer(self, layer: nn.Module, args: Any) -> None:
        if self._trained is not None:  # disabled
            return
        placed = [binding.place_for_layer() for binding in self.bindings.values()]
        if any(placed):
            self._layer = (layer,)

    @torch.compiler.disable
    def _after_layer(self, layer: nn.Module, *_: Any) -> None:
        if layer in self._layer:
            self._layer = ()
            after: Any = self._after_forward
            after()

    def refuse_unfitted(self, adapter_name: str) -> None:
        """Raise ConfigError if the generator cannot be evaluated before `fit_frames`."""
        if getattr(self[adapter_name], "needs_fit", False):
            raise ConfigError(
                "this adapter acts in directions of the loss gradient, which are not known yet:"
                " call qpeft.fit_frames(model, batches) with calibration batches first (about 64"
                " blocks of training text). If this is a copy, such as the reference of TRL's"
                " trainers, call it with save_to=FILE: copies read the frames from there"
            )

    def invalidate(self) -> None:
        """Discard every generator's value: the next forward pass computes it again."""
        for binding in self.bindings.values():
            binding.invalidate()

    def place_stand_ins(self) -> None:
        """Evaluate those generators again whose parameters changed, when an adapter is used."""
        for binding in self.bindings.values():
            binding.place_stand_ins()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within: the adapters have the current values, as tensors without a graph."""
        for binding in self.bindings.values():
            binding.refresh_detached()
        try:
            yield
        finally:  # also of an adapter that PEFT refused to change
            self.place_stand_ins()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within: every computation of this thread is exact, whatever backend trains the
        adapter.
        """
        has_backend = any(circuit.backend is not None for circuit in circuits_in(self))
        if has_backend:
            self.invalidate()
        try:
            with exact_circuits():  # also if another thread sets a backend now
                yield
        finally:
            if has_backend:
                self.invalidate()

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
        layers = [module for module in tuner.model.modules() if isinstance(module, BaseTunerLayer)]
        if not any(layer.merged for layer in layers):
            check_not_tied(tuner.model, tuner.targeted_module_names)

    @contextmanager
    def merging(self, tuner: Any) -> Iterator[None]:
        """Within: PEFT can merge the adapters of `tuner` into the base, or undo it; the values are
        exact.
        """
        self.check_not_tied(tuner)
        with self.exact(), self.detached(), measured_merge(tuner.model):
            yield

    def unmerge_exactly(self, tuner: Any) -> None:
        """Unmerge the adapters of `tuner` with exact values if a backend trains them. PEFT would do
        it in a forward pass, with values that the backend has drawn again.
        """
        layers = [module for module in tuner.model.modules() if isinstance(module, BaseTunerLayer)]
        is_merged = any(layer.merged for layer in layers)
        if is_merged and any(circuit.backend is not None for circuit in circuits_in(self)):
            with self.merging(tuner):
                BaseTuner.unmerge_adapter(tuner)

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

    def train(self, mode: bool = True) -> Any:
        """As PyTorch's. At a change of mode, writes through `.data` are noticed on accelerators, too."""
        if mode != self.training:
            self.place_stand_ins()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for binding in self.bindings.values():
            binding.cast_slots(fn)
        return result

    def count_generated(self) -> int:
        """Generated parameters, without those that an export leaves out."""
        return sum(
            sum(binding.sizes) - binding.generator.n_unused for binding in self.bindings.values()
        )

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        """The stock adapter with the current values; `model` is the PeftModel.

        Raises ConfigError if the generator cannot be evaluated before `fit_frames`.
        """
        self.refuse_unfitted(adapter_name)
        binding = self.bindings[adapter_name]
        stock = self.configs[adapter_name].to_stock()
        labels = [slot.label for slot in binding.slots]
        values, ranks = binding.generator.export(labels, binding.values(), stock)
        tensors = self.stock_state(model, adapter_name, values)
        # trained biases and modules (modules_to_save) are not generated; with bias="all" the file
        # also has the bias of the module that was copied, which is not trained
        places = {
            parameter.untyped_storage()._cdata
            for name, parameter in model.named_parameters()
            if ".original_module." not in name
        }
        in_file = {t.untyped_storage()._cdata: t.numel() for t in tensors.values()}
        n_other = sum(n for place, n in in_file.items() if place in places)
        return StockAdapter(
            config=stock,
            tensors=tensors,
            n_trained=sum(p.numel() for p in binding.generator.parameters()) + n_other,
            n_deployed=sum(value.numel() for value in values) + n_other,
            ranks=ranks,
        )

    def stock_state(
        self, model: Any, adapter_name: str, values: Sequence[Tensor] | None = None
    ) -> State:
        """The tensors of the generated adapter, by their keys in a stock file; `model` is the
        PeftModel.

        `values` are those of the slots; by default the current ones.
        """
        binding = self.bindings[adapter_name]
        if adapter_name in self._homes:
            self._homes[adapter_name].check()
        state = {
            key: value
            for key, value in model.state_dict().items()
            if not key.startswith(self.prefix)
        }
        paths: dict[int, list[str]] = {}  # a shared module is saved under each of its names
        for path, module in model.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        # the state dict of the model lacks the generated tensors, which are plain attributes
        for slot, value in zip(binding.slots, values or binding.values(), strict=True):
            for path in paths[id(slot.owner)]:
                state[f"{path}.{slot.name}"] = value
        # and the factors of a tied head, which read those of the embedding
        for path, module in model.named_modules():
            if isinstance(module, TransposedFactor) and module.source[1] == adapter_name:
                path_of_source = paths[id(module.source[0])][0]
                state[f"{path}.weight"] = state[f"{path_of_source}.{adapter_name}"].t()
        as_stock = described_by(model, adapter_name, self.configs[adapter_name].to_stock())
        stock = get_peft_model_state_dict(
            as_stock, state, adapter_name=adapter_name, save_embedding_layers=False
        )
        return {key: value for key, value in stock.items() if value.numel()}


def _adapters_in_use(base: nn.Module) -> set[str]:
    """The adapters that the next forward pass applies."""
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    return {
        name for layer in layers if not layer.disable_adapters for name in layer.active_adapters
    }


def holder_of(model: Any) -> GeneratorHolder | None:
    """The holder of a PeftModel; None if none of its adapters is generated."""
    in_tuner = holder_in(getattr(model, "base_model", None))
    return holder_in(model) if in_tuner is None else in_tuner  # next to a prompt


def holder_in(owner: Any) -> GeneratorHolder | None:
    """The holder that is a module of `owner`."""
    modules = owner.children() if isinstance(owner, nn.Module) else ()
    return next((module for module in modules if isinstance(module, GeneratorHolder)), None)


def described_by(model: Any, adapter_name: str, config: Any) -> Any:
    """The PeftModel as a model with one adapter, with this config: PEFT saves and loads by the type
    in the config.

    It has the same modules and tensors. `model` is not changed, as other threads may call it.
    """
    described = _same_modules(model)
    if not model._is_prompt_learning:
        tuner = _same_modules(model.base_model)
        described._modules = {**model._modules, "base_model": tuner}
    described.peft_config = {adapter_name: config}
    return described


def _same_modules(module: nn.Module) -> Any:
    """A shallow copy; `copy.copy` would ask how the module is pickled."""
    copied = object.__new__(type(module))
    vars(copied).update(vars(module))
    return copied


def count_trainable(model: Any) -> int:
    """Trainable parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
