"""The autograd boundary between a generator and the adapter tensors that it fills.

A `Binding` replaces the trainable tensors of a stock adapter by views of the generator's flat
output. The output enters the training graph as one node. Its inputs are the generator's parameters,
its value is computed once per parameter version, and its backward pass runs through a private
graph:

    parameters --> generator --> flat (P,)  | node |  split, view --> lora_A, lora_B, ... --> loss

The generator therefore runs once per optimizer step, for any number of forward passes,
micro-batches or checkpointed segments. The gradients of all micro-batches of one accelerate step
are summed before one backward pass.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from qpeft.circuits.numerics import refuse_second_derivative
from qpeft.core.replication import average, copy_from_first, keep_whole, n_processes, refuse_sharded
from qpeft.core.slots import Slot
from qpeft.errors import QpeftError

if TYPE_CHECKING:
    from qpeft.core.generator import Generator


class Binding:
    """Keeps an adapter's tensors equal to its generator's output.

    Args:
        generator: Registered elsewhere, so that it is saved once.
        slots: The tensors to fill, in the order of the flat vector.
    """

    def __init__(self, generator: Generator, slots: Sequence[Slot]) -> None:
        self.generator = generator
        self._evaluate: Callable[[], Tensor] = generator
        self.slots = list(slots)
        self.sizes = [slot.shape.numel() for slot in slots]
        self._flat: Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._placed: str | None = (
            None  # "graph" or "detached", if the slots hold values of the last evaluation
        )
        self._deferred: Tensor | None = None
        self._averages = (
            False  # gradients over all processes, because FSDP2 shards the rest of the model
        )
        _keep(self)
        generator.register_load_state_dict_pre_hook(_before_loading)
        generator.register_load_state_dict_post_hook(_after_loading)
        self.refresh()

    def refresh(self) -> None:
        """Evaluate the generator if its parameters changed, and place the tensors for the next
        forward pass.

        Raises ConfigError if FSDP or DeepSpeed ZeRO has sharded the generator.
        """
        refuse_sharded(self.generator)
        self.restore_precision()
        parameters = list(self.generator.parameters())
        trained = any(p.requires_grad for p in parameters)
        builds_graph = trained and torch.is_grad_enabled()
        if builds_graph and self._deferred is not None and all(p.grad is None for p in parameters):
            # the gradients were cleared: an interrupted window must not leak into the next
            self._deferred = None
        key = _key(parameters)
        if self._flat is None or self._key != key or (trained and not self._flat.requires_grad):
            with torch.inference_mode(False), torch.set_grad_enabled(trained):
                self.flush()  # through the graph of the values it belongs to
                self._flat = self._evaluate()
                self._key = key
        elif not builds_graph and self._placed:
            return
        self._place(detached=not trained)

    def refresh_detached(self) -> None:
        """Place the current values, as tensors without a graph, until the next training forward
        pass.
        """
        self.refresh()
        self._place(detached=True)

    def evaluate_by(self, evaluate: Callable[[], Tensor]) -> None:
        """Compute the generator's flat values (P,) by `evaluate()` from now on, such as CUDA
        graphs.
        """
        self._evaluate = evaluate
        self.invalidate()

    def replicate(self, model: nn.Module) -> None:
        """Keep the generator equal in all processes from now on, while FSDP2 shards the model."""
        if not self._averages:
            copy_from_first(self.generator, model)
            self.invalidate()
            self._averages = True

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow `model.to(...)` as stock parameters would; PEFT reads a prefix's device before its
        values.
        """
        for slot in self.slots:
            slot.put(fn(slot.owner.__dict__[slot.name].detach()))
            slot.dtype = slot.owner.__dict__[slot.name].dtype
        self._placed = None

    def restore_precision(self) -> None:
        """Undo casts to half precision, which trainers apply to the adapters of quantized models."""
        for parameter in self.generator.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
                # even at the address of the last evaluation, whose graph no longer reaches it
                self._key = ()

    def invalidate(self) -> None:
        """Discard the evaluation.

        Call it after writing a generator's parameters through `.data`, which PyTorch does not
        record: an optimizer step, `load_state_dict` and operations inside `torch.no_grad()` are
        noticed.
        """
        self._flat, self._key, self._placed = None, (), None

    def renew(self) -> None:
        """Evaluate the generator now, unless this is costly, so that the next forward pass is early
        enough.
        """
        self.invalidate()
        if not getattr(self.generator, "is_costly", False):
            self.refresh()

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """The generated tensors, detached copies in slot order, with each slot's shape and dtype."""
        parts = torch.split(self.generator(), self.sizes)
        return [
            part.view(slot.shape).to(slot.dtype, copy=True)
            for slot, part in zip(self.slots, parts, strict=True)
        ]

    def release(self) -> None:
        """Stop generating; the adapter's own parameters get the current values."""
        for slot, value in zip(self.slots, self.values(), strict=True):
            del slot.owner.__dict__[slot.name]
            slot.owner._parameters[slot.name] = nn.Parameter(value, requires_grad=False)
        _live.pop(id(self), None)

    def flush(self) -> None:
        """Run the backward pass of the generator for deferred gradients."""
        if self._deferred is not None and self._flat is not None:
            gradient, self._deferred = self._deferred, None
            gradient = average(gradient) if self._averages else gradient
            inputs = [p for p in self.generator.parameters() if p.requires_grad]
            with torch.autocast(gradient.device.type, enabled=False):
                torch.autograd.backward(self._flat, gradient, inputs=inputs, retain_graph=True)

    @torch.inference_mode(False)
    def _place(self, *, detached: bool) -> None:
        assert self._flat is not None
        with torch.set_grad_enabled(not detached):
            flat = self._flat.detach()
            if (
                not detached
            ):  # in a tuple, so that autograd does not treat the private graph as an input
                flat = _Boundary.apply(self, (self._flat,), *self.generator.parameters())
            for slot, part in zip(self.slots, torch.split(flat, self.sizes), strict=True):
                tensor = part.view(slot.shape).to(slot.dtype)
                if tensor.requires_grad:
                    tensor.__deepcopy__ = _no_copy  # type: ignore[method-assign]
                slot.put(tensor)
        self._placed = "detached" if detached else "graph"

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        """A binding over the copied generator and modules, without the cached graph."""
        memo[id(self)] = new = copy.copy(self)
        new.invalidate()
        new._deferred = None
        new.generator = new._evaluate = copy.deepcopy(self.generator, memo)
        new.slots = [replace(s, owner=copy.deepcopy(s.owner, memo)) for s in self.slots]
        for old, copied in zip(self.slots, new.slots, strict=True):
            copied.put(old.owner.__dict__[old.name].detach().clone())
        _keep(new)
        return new


class _Boundary(torch.autograd.Function):
    """The identity on the flat value, with the generator's parameters as inputs."""

    @staticmethod
    def forward(
        ctx: Any, binding: Binding, private: tuple[Tensor], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.binding, ctx.flat, ctx.parameters, ctx.runs = binding, private[0], parameters, 0
        return ctx.flat.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        binding: Binding = ctx.binding
        accelerate = GradientState._shared_state
        if accelerate and not accelerate.get(
            "sync_gradients", True
        ):  # more micro-batches before the optimizer step
            deferred = binding._deferred
            binding._deferred = gradient.clone() if deferred is None else deferred.add_(gradient)
            # zeros and not None: if `grad` is None later, the accumulation was abandoned
            return (
                None,
                None,
                *(torch.zeros_like(p) if p.requires_grad else None for p in ctx.parameters),
            )
        if binding._deferred is not None:
            gradient, binding._deferred = gradient + binding._deferred, None
        ctx.runs += 1
        if binding._averages:
            gradient = average(gradient)
        elif ctx.runs > 1 and n_processes() > 1:
            raise RuntimeError(
                "the generator received several partial gradients in one backward pass under"
                " distributed training (reentrant activation checkpointing), of which only the"
                " first would be averaged; use activation_checkpointing_kwargs={'use_reentrant':"
                " False}"
            )
        wanted = [p for p in ctx.parameters if p.requires_grad]
        # Autocast would also apply to a backward pass that is called inside it. Gradients are
        # enabled for nodes that compute with autograd; the simulator's own backward pass still runs
        # without, as `create_graph` is false.
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            found = iter(
                torch.autograd.grad(
                    ctx.flat, wanted, gradient, retain_graph=True, allow_unused=True
                )
            )
        return (None, None, *(next(found) if p.requires_grad else None for p in ctx.parameters))


def _no_copy(memo: dict[int, Any]) -> None:
    """`__deepcopy__` of a generated tensor, which PyTorch refuses to copy; the copied binding
    places its own.
    """


def _key(parameters: Sequence[nn.Parameter]) -> tuple[Any, ...]:
    return tuple((p.data_ptr(), p._version, p.device, p.requires_grad) for p in parameters)


def _before_loading(generator: Generator, *_: Any) -> None:
    """Values are loaded in full precision, to the device of the generator."""
    generator.home = generator.fingerprint.device
    for binding in _live_of(generator.parameters()):
        binding.restore_precision()


def _after_loading(generator: Generator, *_: Any) -> None:
    """Refresh at once, so that nothing reads an adapter tensor from before the loading."""
    if (
        generator.fingerprint.device != generator.home
    ):  # PEFT's low_cpu_mem_usage assigns tensors of an accelerator
        generator.to(generator.home)
    for binding in _live_of(generator.parameters()):
        with suppress(QpeftError):  # the next forward pass raises it
            binding.renew()


_live: weakref.WeakValueDictionary[int, Binding] = weakref.WeakValueDictionary()


def _keep(binding: Binding) -> None:
    keep_whole(binding.generator)
    _live[id(binding)] = binding


def _live_of(parameters: Iterable[Tensor]) -> list[Binding]:
    """The bindings with some of these parameters."""
    ids = {id(p) for p in parameters} if _live else ()
    return [b for b in list(_live.values()) if any(id(p) in ids for p in b.generator.parameters())]


def _on_trained(method: Callable[[Binding], None], optimizer: Optimizer, *_: Any) -> None:
    """Call the method of every binding whose parameters the optimizer has."""
    for binding in _live_of(p for group in optimizer.param_groups for p in group["params"]):
        method(binding)


# deferred gradients are added, if the step is made during accumulation
register_optimizer_step_pre_hook(partial(_on_trained, Binding.flush))
# at once, so that nothing reads an adapter tensor from before the step
register_optimizer_step_post_hook(partial(_on_trained, Binding.renew))
