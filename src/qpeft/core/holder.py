"""What holds generators: a tuner of ours, or a PeftModel over whose stock adapter a generator was put."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.core.adapter_form import AdapterForm, count_trainable
from qpeft.core.binding import Binding
from qpeft.core.circuit_module import CircuitModule
from qpeft.core.config import GeneratedConfig
from qpeft.errors import ConfigError


class GeneratorHolder(AdapterForm):
    """Mixed into a module: it keeps one generator and one binding per adapter, by the adapter's name."""

    container = "qpeft_generator"
    _bindings: dict[str, Binding]

    def _begin_holding(self) -> None:
        setattr(self, self.container, nn.ModuleDict())
        self._bindings = {}

    def _hold(self, adapter_name: str, binding: Binding) -> None:
        self.generators[adapter_name] = binding.generator
        self._bindings[adapter_name] = binding

    def _let_go(self, adapter_name: str) -> None:
        self._bindings.pop(adapter_name)
        del self.generators[adapter_name]

    @property
    def generators(self) -> nn.ModuleDict:
        """The generator of each adapter, by the adapter's name."""
        generators = self._modules[self.container]
        assert isinstance(generators, nn.ModuleDict)
        return generators

    def binding(self, adapter_name: str) -> Binding:
        """What connects the adapter's generator with its tensors."""
        return self._bindings[adapter_name]

    def generated_config(self, adapter_name: str) -> GeneratedConfig:
        """How the adapter is generated."""
        raise NotImplementedError

    def stock_state(self, model: Any, adapter_name: str) -> dict[str, Tensor]:
        """The tensors of the adapter that was generated, with the keys of a stock file; `model` is the PeftModel."""
        raise NotImplementedError

    def count_deployed(self, model: Any) -> int:
        generated = sum(sum(binding.sizes) for binding in self._bindings.values())
        return generated + count_trainable(model) - count_trainable(self.generators)

    def invalidate(self) -> None:
        """Forget every generator's evaluation: the next forward makes a new one."""
        for binding in self._bindings.values():
            binding.invalidate()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within: circuits on the exact simulator, whatever backend they train on; nothing else changes."""
        features = [m for m in self.generators.modules() if isinstance(m, CircuitModule)]
        backends = [feature.backend for feature in features]
        if not any(backends):
            yield
            return
        with ExitStack() as stack:
            for binding in self._bindings.values():
                stack.enter_context(binding.set_aside())
            for feature in features:
                feature.backend = None
            try:
                yield
            finally:
                for feature, backend in zip(features, backends, strict=True):
                    feature.backend = backend

    @contextmanager
    def keeping_latent(self) -> Iterator[None]:
        """Within: a saved adapter keeps its unquantised parameters, from which a run resumes as if never stopped."""
        generators: list[Any] = list(self.generators.values())
        for generator in generators:
            generator.latent = True
        try:
            yield
        finally:
            for generator in generators:
                generator.latent = False

    def refresh_detached(self) -> None:
        """Put the present values in place, as tensors without a graph."""
        with torch.no_grad():
            for binding in self._bindings.values():
                binding.refresh()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for binding in self._bindings.values():
            binding.follow(fn)
        return result


def holder_of(model: Any) -> GeneratorHolder | None:
    """What holds the generators of a PeftModel; None if nothing of it is generated."""
    for candidate in (model, getattr(model, "base_model", None)):
        if isinstance(candidate, GeneratorHolder):
            return candidate
    return None


def refuse_replica(module: nn.Module) -> None:
    """Raise ConfigError inside `torch.nn.DataParallel`, whose copies of generated tensors have no gradient."""
    if getattr(module, "_is_replica", False):
        raise ConfigError(
            "torch.nn.DataParallel copies the generated tensors without their gradient; "
            "use one device, or torchrun / accelerate launch"
        )


def refuse_weighted_sum() -> None:
    """Raise ConfigError: a sum of adapters has no generator."""
    raise ConfigError(
        "a weighted sum of generated adapters is not a generated adapter; "
        "qpeft.export each one and combine the stock adapters"
    )
