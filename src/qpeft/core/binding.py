"""The autograd boundary between a generator and the adapter tensors that it fills.

A `Binding` replaces the trainable tensors of a stock adapter by views of the generator's flat output. The output enters
the training graph as one node. Its inputs are the generator's parameters, its value is computed once per parameter
version, and its backward pass runs through a private graph:

    parameters --> generator --> flat (P,)  | node |  split, view --> lora_A, lora_B, ... --> loss

The generator therefore runs once per optimizer step, for any number of forward passes, micro-batches or checkpointed
segments. The gradients of all micro-batches of one accelerate step are summed before one backward pass.

Threads may run the model at the same time, for example one that trains and one that evaluates. The tensors of a trained
adapter therefore have the node in every grad mode, as the parameters of a stock adapter require gradients in every
mode: a forward pass without gradients never places tensors that another thread's graph would lack.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from qpeft.circuits.numerics import once_differentiable
from qpeft.core.replication import average, copy_from_first, keep_whole, n_processes, refuse_sharded
from qpeft.errors import QpeftError

HALF_PRECISION = (torch.float16, torch.bfloat16)


@dataclass
class Slot:
    """One adapter tensor that a generator fills: attribute `name` of module `owner`."""

    owner: nn.Module
    name: str
    label: str  # the tensor's name within the base model, without the adapter's
    shape: torch.Size
    dtype: torch.dtype
    widens: bool = True  # whether a half-precision tensor becomes float32 in training, as PEFT does for adapters

    def put(self, tensor: Tensor) -> None:
        """Set the tensor as a plain attribute, invisible to `nn.Module`."""
        self.owner.__dict__[self.name] = tensor

    def take_parameter(self) -> None:
        """Remove the stock parameter from its module."""
        del self.owner._parameters[self.name]

    def restore_parameter(self, value: Tensor) -> None:
        """Undo `take_parameter`; the parameter gets `value`."""
        self.owner.__dict__.pop(self.name, None)
        self.owner._parameters[self.name] = nn.Parameter(value, requires_grad=False)


class Binding:
    """Keeps an adapter's tensors equal to its generator's output.

    Args:
        generator: Module with `forward() -> flat (P,)`; registered elsewhere, so that it is saved once.
        slots: The tensors to fill, in the order of the flat vector.
    """

    def __init__(self, generator: nn.Module, slots: Sequence[Slot]) -> None:
        self.generator = generator
        self.slots = list(slots)
        self.sizes = [slot.shape.numel() for slot in slots]
        self._flat: Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._values: Tensor | None = None  # the parameters at the last evaluation, flat
        self._placed: str | None = None  # "graph" or "detached", if the slots hold values of the last evaluation
        self._deferred: Tensor | None = None
        self._averages = False  # gradients over all processes, because FSDP2 shards the rest of the model
        self._lock = threading.RLock()  # of the evaluation and the slots; not taken in a backward pass
        for slot in self.slots:
            slot.take_parameter()
        _keep(self)
        generator.register_load_state_dict_pre_hook(_before_state)
        generator.register_state_dict_pre_hook(_before_state)
        generator.register_load_state_dict_post_hook(_after_loading)
        self.refresh()

    def refresh(self) -> None:
        """Evaluate the generator if its parameters changed, and place the tensors for the next forward pass.

        Raises:
            ConfigError: FSDP or DeepSpeed ZeRO has sharded the generator.
        """
        refuse_sharded(self.generator)
        with self._lock:
            self.restore_precision()
            parameters = list(self.generator.parameters())
            trained = any(p.requires_grad for p in parameters)
            builds_graph = trained and torch.is_grad_enabled()
            if builds_graph and self._deferred is not None and all(p.grad is None for p in parameters):
                self._deferred = None  # the gradients were cleared: an interrupted window must not leak into the next
            if self._stale(parameters, trained):
                with torch.inference_mode(False), torch.set_grad_enabled(trained):
                    self.flush()  # through the graph of the values it belongs to
                    self._evaluate(parameters)
            elif not builds_graph and (self._placed == "detached" or (self._placed and trained)):
                return
            self._place(detached=not trained)

    def refresh_detached(self) -> None:
        """Place the current values, as tensors without a graph, until the next training forward pass."""
        with self._lock:
            self.refresh()
            self._place(detached=True)

    def replicate(self, device: torch.device) -> None:
        """Keep the generator equal in all processes from now on, while FSDP2 shards the model; `device` computes."""
        if not self._averages:
            copy_from_first(self.generator, device)
            self.invalidate()
            self._averages = True

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow `model.to(...)`: the tensors get the dtype that stock parameters would get."""
        for slot in self.slots:
            slot.dtype = fn(torch.empty(0, dtype=slot.dtype)).dtype
        self._placed = None
        self.restore_precision()

    def restore_precision(self) -> None:
        """Undo casts to half precision through `.data`, which trainers apply to adapters on quantized models.

        The exact float32 values of a parameter are restored if it has not been trained since the cast.
        """
        parameters = list(self.generator.parameters())
        if not any(p.dtype in HALF_PRECISION for p in parameters):
            return
        exact = _flat_values(parameters).float() if self._values is None else self._values
        for parameter, value in zip(parameters, exact.split([p.numel() for p in parameters]), strict=True):
            if parameter.dtype in HALF_PRECISION:
                parameter.data = _widened(parameter.data, value)

    def invalidate(self) -> None:
        """Discard the evaluation; needed only after writing parameters through `.data` on an accelerator."""
        with self._lock:
            self._flat, self._key, self._values, self._placed = None, (), None, None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within: the generator is evaluated again; afterwards the previous evaluation is restored.

        On a device an evaluation costs a job, and a second one at the same angles would give other values.
        """
        kept = self._flat, self._key, self._values, self._deferred
        self.invalidate()
        self._deferred = None
        try:
            yield
        finally:
            self._flat, self._key, self._values, self._deferred = kept
            self._placed = None

    def widen_half_precision(self) -> None:
        """Place float16 and bfloat16 tensors as float32 from now on, as PEFT does for trained adapters."""
        for slot in self.slots:
            if slot.widens and slot.dtype in HALF_PRECISION:
                slot.dtype = torch.float32
        self._placed = None
        self.refresh()

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """The generated tensors, detached copies in slot order, with each slot's shape and dtype."""
        parts = torch.split(self.generator(), self.sizes)
        return [part.view(slot.shape).to(slot.dtype, copy=True) for slot, part in zip(self.slots, parts, strict=True)]

    def release(self) -> None:
        """Stop generating; the adapter's own parameters get the current values."""
        for slot, value in zip(self.slots, self.values(), strict=True):
            slot.restore_parameter(value)
        _live.pop(id(self), None)

    @contextmanager
    def as_parameters(self) -> Iterator[None]:
        """Within: the adapter has its own parameters, with the current values, as in stock PEFT."""
        for slot, value in zip(self.slots, self.values(), strict=True):
            slot.restore_parameter(value)
        try:
            yield
        finally:
            for slot in self.slots:
                slot.take_parameter()
            self._placed = None
            self.refresh()

    def flush(self) -> None:
        """Run the backward pass of the generator for deferred gradients."""
        if self._deferred is not None and self._flat is not None:
            gradient, self._deferred = self._deferred, None
            gradient = average([gradient])[0] if self._averages else gradient
            inputs = [p for p in self.generator.parameters() if p.requires_grad]
            with torch.autocast(gradient.device.type, enabled=False):
                torch.autograd.backward(self._flat, gradient, inputs=inputs, retain_graph=True)

    def _stale(self, parameters: list[nn.Parameter], trained: bool) -> bool:
        if self._flat is None or self._key != _key(parameters) or (trained and not self._flat.requires_grad):
            return True
        # writes through `.data` do not change the version; on the CPU the values are compared, which on an accelerator
        # would wait for all queued work
        if self._values is None or self._values.device.type != "cpu":
            return False
        return not torch.equal(_flat_values(parameters), self._values)

    def _evaluate(self, parameters: list[nn.Parameter]) -> None:
        # before the evaluation: if another thread changes a parameter meanwhile, the value is stale
        key, values = _key(parameters), _flat_values(parameters)
        self._flat = self.generator()
        self._key, self._values, self._placed = key, values, None

    @torch.inference_mode(False)
    def _place(self, *, detached: bool) -> None:
        assert self._flat is not None
        with torch.set_grad_enabled(not detached):
            flat = self._flat.detach()
            if not detached:  # in a tuple, so that autograd does not treat the private graph as an input
                flat = _Boundary.apply(self, (self._flat,), *self.generator.parameters())
            for slot, part in zip(self.slots, torch.split(flat, self.sizes), strict=True):
                tensor = part.view(slot.shape).to(slot.dtype)
                if tensor.requires_grad:
                    tensor.__deepcopy__ = _DetachedCopy(tensor)  # type: ignore[method-assign]
                slot.put(tensor)
        self._placed = "detached" if detached else "graph"

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        """A binding over the copied generator and modules, without the cached graph."""
        new = Binding.__new__(Binding)
        memo[id(self)] = new
        new.__setstate__(self.__getstate__())
        new.generator = copy.deepcopy(self.generator, memo)
        new.slots = [replace(s, owner=copy.deepcopy(s.owner, memo)) for s in self.slots]
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_flat": None,
            "_key": (),
            "_values": None,
            "_placed": None,
            "_deferred": None,
            "_lock": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        _keep(self)


class _Boundary(torch.autograd.Function):
    """The identity on the flat value, with the generator's parameters as inputs."""

    @staticmethod
    def forward(ctx: Any, binding: Binding, private: tuple[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.binding, ctx.flat, ctx.parameters, ctx.runs = binding, private[0], parameters, 0
        return ctx.flat.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        binding: Binding = ctx.binding
        if _more_micro_batches():
            deferred = binding._deferred
            binding._deferred = gradient.clone() if deferred is None else deferred.add_(gradient)
            # zeros and not None: if `grad` is None later, the accumulation was abandoned
            return (None, None, *(torch.zeros_like(p) if p.requires_grad else None for p in ctx.parameters))
        if binding._deferred is not None:
            gradient, binding._deferred = gradient + binding._deferred, None
        ctx.runs += 1
        if ctx.runs > 1 and not binding._averages:
            _refuse_partial_gradients()
        wanted = [p for p in ctx.parameters if p.requires_grad]
        # without autocast, which would also apply to a backward pass that is called inside it
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            found = torch.autograd.grad(ctx.flat, wanted, gradient, retain_graph=True, allow_unused=True)
        gradients = iter(average(found) if binding._averages else found)
        return (None, None, *(next(gradients) if p.requires_grad else None for p in ctx.parameters))


class _DetachedCopy:
    """`__deepcopy__` of one generated tensor, which PyTorch refuses to copy; the copy is generated again anyway."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)

    def __call__(self, memo: dict[int, Any]) -> Tensor | None:
        tensor = self._tensor()
        return None if tensor is None else tensor.detach().clone()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return (_no_copy, ())


def _no_copy() -> None:
    return None


def _flat_values(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A copy of all values, in one tensor: one kernel on an accelerator."""
    return torch.cat([p.detach().flatten() for p in parameters])


def _widened(rounded: Tensor, exact: Tensor) -> Tensor:
    """`rounded` in float32; a copy of `exact` (flat) if rounding it gives `rounded`."""
    exact = exact.view_as(rounded)
    return exact.to(rounded.device, copy=True) if torch.equal(exact.to(rounded), rounded) else rounded.float()


def _key(parameters: Sequence[nn.Parameter]) -> tuple[Any, ...]:
    return tuple((p.data_ptr(), p._version, p.device, p.requires_grad) for p in parameters)


def _before_state(generator: nn.Module, *_: Any) -> None:
    """State dicts are saved and loaded in full precision."""
    for binding in _live_bindings():
        if binding.generator is generator:
            binding.restore_precision()


def _after_loading(generator: nn.Module, *_: Any) -> None:
    """Refresh at once, so that nothing reads an adapter tensor from before the loading."""
    for binding in _live_bindings():
        if binding.generator is generator and not getattr(generator, "is_costly", False):
            with suppress(QpeftError):  # the next forward pass raises it
                binding.refresh()


def _more_micro_batches() -> bool:
    """Whether, according to accelerate, other micro-batches follow before the optimizer step."""
    state = GradientState._shared_state
    return bool(state) and not state.get("sync_gradients", True)


def _refuse_partial_gradients() -> None:
    if n_processes() > 1:
        raise RuntimeError(
            "the generator received several partial gradients in one backward pass under distributed training "
            "(reentrant activation checkpointing), of which only the first would be averaged; "
            "use activation_checkpointing_kwargs={'use_reentrant': False}"
        )


_live: weakref.WeakValueDictionary[int, Binding] = weakref.WeakValueDictionary()


def _keep(binding: Binding) -> None:
    keep_whole(binding.generator)
    _live[id(binding)] = binding


def _live_bindings() -> list[Binding]:
    """All bindings; a copy made at once, because other threads create and delete some."""
    return [binding for reference in _live.valuerefs() if (binding := reference()) is not None]


def _trained_by(optimizer: Optimizer) -> list[Binding]:
    if not (live := _live_bindings()):
        return []
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [b for b in live if any(id(p) in trained for p in b.generator.parameters())]


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    for binding in _trained_by(optimizer):
        if binding._deferred is not None:
            warnings.warn(
                "the optimizer made a step during gradient accumulation; the deferred gradients of the generator were "
                "added now, after any gradient clipping",
                stacklevel=2,
            )
            binding.flush()


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    """Refresh at once, so that nothing reads an adapter tensor from before the step."""
    for binding in _trained_by(optimizer):
        binding.invalidate()
        if getattr(binding.generator, "is_costly", False):
            continue  # the next forward pass evaluates it
        binding.refresh()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
