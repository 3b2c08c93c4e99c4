"""A generator's values and their gradient as two CUDA graphs; each starts hundreds of small kernels at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from qpeft.core.generator import CircuitModule, Generator
from qpeft.core.meta_model import check_adapted
from qpeft.errors import TrainingError


def capture(model: Any) -> int:
    """Run the generators of a model on a GPU as CUDA graphs from now on, with equal bits; returns how many can be.

    Call it when the model is on its device, and before another thread uses the GPU, such as that of a DataLoader with
    pinned memory. A generator runs as usual if it waits for the GPU (`pad` circuits, family lie, a backend), and after
    a change that a graph cannot follow: another device, or other trainable parameters.

    Raises:
        ConfigError: the model has no adapter.
    """
    check_adapted(model)
    bindings = getattr(getattr(model, "qpeft_generator", None), "bindings", {})
    return sum(binding.capture() for binding in bindings.values())


class Captured:
    """A generator's trainable parameters -> flat (P,), by graphs that read and write the same memory in every call."""

    @torch.enable_grad()
    def __init__(self, generator: Generator) -> None:
        self._generator, self._n_calls = generator, 0
        names = [name for name, p in generator.named_parameters() if p.requires_grad]
        self._parameters = [generator.get_parameter(name) for name in names]

        def evaluate(*values: Tensor) -> Tensor:
            return functional_call(generator, dict(zip(names, values, strict=True)), ())

        samples = tuple(p.detach().clone().requires_grad_() for p in self._parameters)
        graphed = None if _waits(evaluate, samples) else torch.cuda.make_graphed_callables
        with torch.cuda.device_of(samples[0]):
            self._replay: Any = graphed and graphed(evaluate, samples, allow_unused_input=True)
        # which no module may free while a graph reads them
        self._read = [x for module in generator.modules() for x in vars(module).values() if isinstance(x, Tensor)]
        self._state = self._current_state()

    def is_usable(self) -> bool:
        """Whether nothing has changed but the values of the parameters."""
        return self._replay is not None and self._state == self._current_state()

    def _current_state(self) -> list[Any]:
        tensors = *self._generator.parameters(), *self._generator.buffers()
        backends = (m.backend for m in self._generator.modules() if isinstance(m, CircuitModule))
        return [*((t.data_ptr(), t.device, t.requires_grad) for t in tensors), *backends]

    def __call__(self) -> Tensor:
        self._n_calls += 1
        values = [p.view_as(p) for p in self._parameters]
        for value in values:
            value.register_hook(torch.clone)  # otherwise `grad` would be the graph's memory
        flat = self._replay(*values).clone()
        flat.register_hook(partial(self._check_latest, self._n_calls))
        return flat

    def _check_latest(self, call: int, _: Tensor) -> None:
        if call != self._n_calls:
            raise TrainingError("the adapter was evaluated again after this loss; call its backward() first")


def _waits(evaluate: Callable[..., Tensor], samples: tuple[Tensor, ...]) -> bool:
    """Whether the generator waits for the GPU, or fails: then a capture would leave torch's CUDA state damaged."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        for mode in ("default", "error"):  # the first evaluation makes tables
            torch.cuda.set_sync_debug_mode(mode)
            flat = evaluate(*samples)
            torch.autograd.grad(flat, samples, torch.ones_like(flat), allow_unused=True)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False
