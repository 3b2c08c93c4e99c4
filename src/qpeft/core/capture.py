"""A generator's values and their gradient as two CUDA graphs.

A generator runs hundreds of small kernels. Starting them one by one from Python takes longer than
running them; a CUDA graph starts all of them at once, on the same memory in every call:

    parameters -- copy --> inputs -- graph: generator --> flat (P,) ------- clone --> adapter
    gradients <-- clone -- graph: its backward pass <---- gradient (P,) <-- copy ---- adapter
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qpeft.core.generator import Generator, circuits_in
from qpeft.core.generator_holder import holder_of
from qpeft.core.meta_model import peft_model_of
from qpeft.errors import TrainingError


def capture(model: Any) -> dict[str, str | None]:
    """Evaluate the model's generators as CUDA graphs from now on, with equal bits.

    Call it before training, when the model is on its GPU. A generator runs as before if its
    computation waits for the GPU (`pad` circuits, family lie) or leaves it (a backend), and after
    a change of its device or of what is trainable; call it again after such a change. Where
    the base takes most of a step, as with large batches, graphs gain little.

    Returns:
        For each generated adapter by name: None if graphs are used, or the reason why not. Empty
        for an adapter that has no generator.

    Raises:
        ConfigError: the model has no adapter.
    """
    model = peft_model_of(model)
    holder = holder_of(model)
    bindings = {} if holder is None else holder.bindings
    reasons: dict[str, str | None] = {}
    for name, binding in bindings.items():
        captured = Captured(binding.generator)
        reason = _obstacle(binding.generator) or captured.record()
        binding.evaluate_by(binding.generator if reason else captured)
        reasons[name] = reason
    return reasons


def _obstacle(generator: Generator) -> str | None:
    """Why the generator need not be tried."""
    device = generator.fingerprint.device
    if device.type != "cuda":
        return f"it is on the device '{device}', and CUDA graphs need an NVIDIA GPU"
    if not any(p.requires_grad for p in generator.parameters()):
        return "none of its parameters is trainable"
    if any(backend is not None for backend in _backends(generator)):
        return "its circuits run on a backend"
    return None


class Captured:
    """A generator's flat values (P,), by graphs that read and write the same memory in every call.

    Without graphs, when anything but the values of the parameters has changed since `record`.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._names = [name for name, p in generator.named_parameters() if p.requires_grad]
        self._parameters = [generator.get_parameter(name) for name in self._names]
        self._state: list[Any] | None = None
        self.inputs: list[Tensor] = []  # what the graphs read, one for each trainable parameter
        self.n_calls = 0

    @torch.enable_grad()
    def record(self) -> str | None:
        """Record both graphs; the reason if they cannot be."""
        self.inputs = [p.detach().clone().requires_grad_() for p in self._parameters]
        if (reason := self._rehearse()) is not None:
            return reason
        self.forward = torch.cuda.CUDAGraph()
        self.backward = torch.cuda.CUDAGraph()
        # other threads, such as that of a data loader, may use the GPU meanwhile
        mode = "thread_local"
        try:
            with torch.cuda.device_of(self.inputs[0]):
                with torch.cuda.graph(self.forward, capture_error_mode=mode):
                    self.flat = self._evaluate()  # (P,)
                self.gradient = torch.zeros_like(self.flat)
                pool = self.forward.pool()
                with torch.cuda.graph(self.backward, pool=pool, capture_error_mode=mode):
                    self.gradients = self._differentiate(self.flat, self.gradient)
        except RuntimeError as error:  # memory that ran out, too
            return f"recording it failed ({_first_line(error)})"
        # graphs read the memory of these tensors, so they are kept, whatever the modules do
        self._read = _attributes(self._generator)
        self._state = self._current_state()
        return None

    def __call__(self) -> Tensor:
        if self._state is None or self._state != self._current_state():
            return self._generator()
        self.n_calls += 1
        return _Replay.apply(self, *self._parameters)

    def _evaluate(self) -> Tensor:
        """The generator's values (P,), as a function of the inputs."""
        values = dict(zip(self._names, self.inputs, strict=True))
        return functional_call(self._generator, values, ())

    def _differentiate(self, flat: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # retained, or a first backward pass would overwrite what a second one reads
        return torch.autograd.grad(
            flat, self.inputs, gradient, retain_graph=True, allow_unused=True
        )

    def _rehearse(self) -> str | None:
        """Evaluate as usual, to make tables and to see whether the computation waits for the GPU.

        A capture that fails on the way could leave torch's CUDA state damaged.
        """
        before = torch.cuda.get_sync_debug_mode()
        try:
            for mode in ("default", "error"):  # the first evaluation makes tables, which may wait
                with warnings.catch_warnings(action="ignore"):  # this mode is a prototype
                    torch.cuda.set_sync_debug_mode(mode)
                flat = self._evaluate()
                self._differentiate(flat, torch.ones_like(flat))
        except RuntimeError as error:
            return f"its computation waits for the GPU or failed ({_first_line(error)})"
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return None

    def _current_state(self) -> list[Any]:
        """All that must not change while the graphs are used: everything but values."""
        generator = self._generator
        tensors = [*generator.parameters(), *generator.buffers(), *_attributes(generator)]
        memory = [(id(t), t.data_ptr(), t.device, t.requires_grad) for t in tensors]
        return [*memory, *_backends(generator)]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: Captured, *parameters: Tensor) -> Tensor:
        for mine, current in zip(captured.inputs, parameters, strict=True):
            mine.copy_(current)
        captured.forward.replay()
        ctx.captured = captured
        ctx.call = captured.n_calls
        return captured.flat.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        captured: Captured = ctx.captured
        if ctx.call != captured.n_calls:
            raise TrainingError(
                "the adapter was evaluated again after this loss, and its CUDA graphs hold the"
                " later values; call backward() of a loss before the next evaluation"
            )
        captured.gradient.copy_(gradient)
        captured.backward.replay()
        return None, *(g if g is None else g.clone() for g in captured.gradients)


def _attributes(generator: nn.Module) -> list[Tensor]:
    """Tensors that modules hold without registering them."""
    values = (value for module in generator.modules() for value in vars(module).values())
    return [value for value in values if isinstance(value, Tensor)]


def _backends(generator: nn.Module) -> list[Any]:
    return [circuit.backend for circuit in circuits_in(generator)]


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
