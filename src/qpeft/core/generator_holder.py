"""The object that owns the generators of a PeftModel: qpeft's tuner, or the PeftModel of `qpeft.attach`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.core.adapter_form import AdapterForm, ExportReport, StockAdapter, count_trainable
from qpeft.core.binding import HALF_PRECISION, Binding
from qpeft.core.config import GeneratedConfig
from qpeft.core.generator import CircuitModule
from qpeft.core.replication import computing_device, is_sharded, refuse_sharded
from qpeft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GeneratedExportReport(ExportReport):
    """The export of a generated adapter; the generator has `n_trained` parameters."""

    n_generated: int  # parameters of the stock adapter


class GeneratorHolder(AdapterForm):
    """Mixed into a module: it keeps one generator and one binding per adapter, by the adapter's name."""

    container = "qpeft_generator"
    _bindings: dict[str, Binding]

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of generated adapters is not a generated adapter; qpeft.export each one and combine the "
            "stock adapters"
        )

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
        """The connection between the adapter's generator and its tensors."""
        return self._bindings[adapter_name]

    def generated_config(self, adapter_name: str) -> GeneratedConfig:
        """How the adapter is generated."""
        raise NotImplementedError

    def stock_state(self, model: Any, adapter_name: str) -> dict[str, Tensor]:
        """The tensors of the generated adapter, by their keys in a stock file; `model` is the PeftModel."""
        raise NotImplementedError

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        generator: Any = self.generators[adapter_name]
        if broken := generator.find_broken():
            raise ConfigError(f"non-finite adapter parameter in {broken}; export an earlier checkpoint")
        binding, config = self.binding(adapter_name), self.generated_config(adapter_name)
        settings = {**config.description(), "start_hash": config.start_hash}
        generated, trained = sum(binding.sizes), sum(p.numel() for p in generator.parameters())
        return StockAdapter(
            tensors=self.stock_state(model, adapter_name),
            config=config.to_stock(),
            is_half=any(slot.widens and slot.dtype in HALF_PRECISION for slot in binding.slots),
            settings=settings,
            report=GeneratedExportReport,
            counts={"n_generated": generated, "n_trained": trained},
            host=settings.get("host", "LoRA"),
            origin=f"Its {generated:,} parameters were generated during training by qpeft from {trained:,} trained\n"
            f"parameters ({settings['method']}). Inference needs neither qpeft nor a quantum device.",
        )

    def count_deployed(self, model: Any) -> int:
        generated = sum(sum(binding.sizes) for binding in self._bindings.values())
        return generated + count_trainable(model) - count_trainable(self.generators)

    def invalidate(self) -> None:
        """Discard every generator's value: the next forward pass computes it again."""
        for binding in self._bindings.values():
            binding.invalidate()

    @contextmanager
    def exact(self) -> Iterator[None]:
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
        """Within: a saved adapter keeps its unquantized parameters, so that a run resumes exactly."""
        generators: list[Any] = list(self.generators.values())
        for generator in generators:
            generator.latent = True
        try:
            yield
        finally:
            for generator in generators:
                generator.latent = False

    @torch.compiler.disable
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                "torch.nn.DataParallel copies the generated tensors without their gradient; use one device, or "
                "torchrun / accelerate launch"
            )
        self._check_ready()
        if is_sharded(self):
            for binding in self._bindings.values():
                binding.replicate(computing_device(self))
        else:
            refuse_sharded(module)
        for binding in self._bindings.values():
            binding.refresh()

    def _check_ready(self) -> None:
        """Raise ConfigError if an active generator cannot be evaluated."""

    def refresh_detached(self) -> None:
        """Place the current values, as tensors without a graph."""
        for binding in self._bindings.values():
            binding.refresh_detached()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for binding in self._bindings.values():
            binding.follow(fn)
        return result


def holder_of(model: Any) -> GeneratorHolder | None:
    """The holder of a PeftModel's generators; None if none of its adapters is generated."""
    return next((m for m in (model, getattr(model, "base_model", None)) if isinstance(m, GeneratorHolder)), None)
