"""A generator's values and their gradient as two CUDA graphs; each starts hundreds of small kernels at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from qpeft.core.generator import CircuitModule, Generator
from qpeft.core.meta_model import check_adapted
from qpeft.errors import TrainingError


def capture(model: Any) -> int:
    """Run the generators of a model on a GPU as CUDA graphs from now on, with equal bits; returns how many can be.

    Call it before training, when the model is on its device. A generator runs as usual if it waits for the GPU (`pad`
    circuits, family lie, a backend), and after a change of its device or of what is trainable.

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
        self._generator, self.n_calls = generator, 0
        names = [name for name, p in generator.named_parameters() if p.requires_grad]
        self._parameters = [generator.get_parameter(name) for name in names]
        # kept, because a graph reads their memory
        self._read = [x for module in generator.modules() for x in vars(module).values() if isinstance(x, Tensor)]
        self._state: list[Any] | None = self._current_state()

        def evaluate(values: Sequence[Tensor]) -> Tensor:
            return functional_call(generator, dict(zip(names, values, strict=True)), ())

        if _waits(evaluate, self._copies()):
            self._state = None
            return
        self.inputs, self.forward, self.backward = self._copies(), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.device_of(self.inputs[0]):
            with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
                self.flat = evaluate(self.inputs)
            self.gradient = torch.zeros_like(self.flat)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                # retained, or a first backward pass would overwrite what a second one reads
                self.found = _gradient(self.flat, self.inputs, self.gradient)

    def is_usable(self) -> bool:
        """Whether nothing has changed but the values of the parameters."""
        return self._state == self._current_state()

    def _current_state(self) -> list[Any]:
        tensors = *self._generator.parameters(), *self._generator.buffers()
        backends = (m.backend for m in self._generator.modules() if isinstance(m, CircuitModule))
        return [*((id(t), t.data_ptr(), t.device, t.requires_grad) for t in tensors), *backends]

    def _copies(self) -> list[Tensor]:
        return [p.detach().clone().requires_grad_() for p in self._parameters]

    def __call__(self) -> Tensor:
        self.n_calls += 1
        return _Replay.apply(self, *self._parameters)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy has no graphs


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: Captured, *parameters: Tensor) -> Tensor:
        for mine, current in zip(captured.inputs, parameters, strict=True):
            mine.copy_(current)
        captured.forward.replay()
        ctx.captured, ctx.call = captured, captured.n_calls
        return captured.flat.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        captured = ctx.captured
        if ctx.call != captured.n_calls:
            raise TrainingError("the adapter was evaluated again after this loss; call its backward() first")
        captured.gradient.copy_(gradient)
        captured.backward.replay()
        return None, *(found if found is None else found.clone() for found in captured.found)


def _gradient(flat: Tensor, values: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(flat, values, gradient, retain_graph=True, allow_unused=True)


def _waits(evaluate: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Tensor]) -> bool:
    """Whether the generator waits for the GPU, or fails: then a capture would leave torch's CUDA state damaged."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        for mode in ("default", "error"):  # the first evaluation makes tables
            with warnings.catch_warnings(action="ignore"):  # this mode is a prototype
                torch.cuda.set_sync_debug_mode(mode)
            flat = evaluate(values)
            _gradient(flat, values, torch.ones_like(flat))
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False
