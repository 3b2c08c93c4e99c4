"""The autograd boundary between a generator and the adapter tensors that it fills.

A `Binding` replaces the trainable tensors of a stock adapter by views of the generator's flat
output, a vector of P values. For autograd the generator is one node, whose inputs are the
generator's parameters; what happens inside it is a graph of its own:

    parameters --> generator --> flat (P,)  | node |  split, view --> lora_A, lora_B, ... --> loss

A training step, in order:

    forward pass       a hook of the base calls `refresh`: it evaluates the generator if its
                       parameters changed, and places the views where PEFT's layers read lora_A, ...
    loss.backward()    PEFT's layers give the gradient of each view, and the node that of flat (P,)
                       to the generator's own graph, which gives those of the parameters
    optimizer.step()   a hook of every optimizer calls `invalidate`: the evaluation is forgotten

The generator is therefore evaluated once per optimizer step, for any number of forward passes,
micro-batches or checkpointed segments. Its backward pass runs in each `backward()`, as a gradient
that waited for the last micro-batch could be missed by whoever reads, clips or replaces `grad`
before.

Others may write into the parameters at any time, and read an adapter's tensor outside of a forward
pass. So between forward passes the layers have stand-ins (`StandIn`) instead of the views, and each
use of one evaluates the generator again if a parameter changed. What the methods of a `Binding` do
with the evaluation and with the tensors in the layers:

    refresh            evaluates if the parameters changed; places the views, with a new node
    refresh_detached   the same, but places values without a graph
    place_stand_ins    keeps the evaluation; somebody may write before the next forward pass
    invalidate         forgets the evaluation, and places stand-ins

The base's hooks call `refresh` before a forward pass, and on a CPU `place_stand_ins` after it. On an
accelerator a comparison of parameters would wait for all queued work.
"""

from __future__ import annotations

import copy
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from threading import RLock, local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._pytree import tree_map_only

from qpeft.circuits.numerics import exact_products, refuse_second_derivative, refuse_transforms
from qpeft.core.generator import circuits_in
from qpeft.core.replication import Replicas, keep_whole, n_processes, refuse_sharded
from qpeft.core.slots import Slot, refuse_hook, refuse_write
from qpeft.errors import ConfigError, QpeftWarning, TrainingError

if TYPE_CHECKING:
    from qpeft.core.generator import Generator


_lock = RLock()  # a thread can evaluate a model while another one trains it
_thread = local()  # whether this thread is in the backward pass of a generator's own graph


class Evaluation:
    """One output of a generator, and what it was computed from.

    Args:
        evaluate: Computes the flat value, with a graph if gradients are enabled.
        generator: Has its parameters, and buffers such as initial angles.
    """

    def __init__(self, evaluate: Callable[[], Tensor], generator: Generator) -> None:
        parameters = list(generator.parameters())
        self._parameters = parameters  # where its graph ends
        self._key = _key(generator)
        self._trained = [p.requires_grad for p in parameters]
        # Copied before the evaluation: if another thread changes a parameter during it, the copies
        # differ from what is there at the end.
        self._copies = [parameter.detach().clone() for parameter in parameters]
        self.flat = evaluate()  # (P,)
        self.version = self.flat._version  # which counts what others write into views of it

    def is_current(self, generator: Generator, compares_values: bool = True) -> bool:
        """Whether the parameters still have the values that were evaluated.

        PyTorch's version counter records optimizers and operations inside `torch.no_grad()`, but no
        writes through `.data`, as TRL, weight averaging and hand-written steps make them. The
        values are therefore compared as well. On an accelerator this waits for all queued work;
        the forward pass after a step evaluates without asking.
        """
        parameters = list(generator.parameters())
        # `functional_call` can replace some by others with the same content, which get gradients
        if [*map(id, parameters)] != [*map(id, self._parameters)]:
            return False
        # an equal key does not mean equal values: a write through `.data` leaves no version
        reached = zip(parameters, self._trained, strict=True)  # by the graph
        if self._key != _key(generator) or any(p.requires_grad > was for p, was in reached):
            return False
        # While a CUDA graph is recorded, no value can be read; what is evaluated counts as current.
        captures = any(p.is_cuda for p in parameters) and torch.cuda.is_current_stream_capturing()
        if captures or not compares_values:
            return True
        return all(map(torch.equal, parameters, self._copies))


@dataclass
class Gradients:
    """What the autograd nodes of a binding share with it.

    They have no reference to the binding: it has the adapter's tensors, these have the nodes, and
    Python cannot collect a cycle through a node.
    """

    replicas: Replicas | None = None  # the processes to average over, if FSDP2 shards the model
    watched: Sequence[int] = ()  # the sizes of the slots, while `reached` is recorded
    reached: Tensor | None = None  # (slots,), bool: which had a gradient other than 0

    def watch(self, gradient: Tensor) -> None:
        """Record which slots the gradient (P,) reaches, without waiting for an accelerator."""
        parts = torch.split(gradient, list(self.watched))
        reached = torch.stack([part.any() for part in parts])
        self.reached = reached if self.reached is None else reached | self.reached


class Binding:
    """Keeps an adapter's tensors equal to its generator's output, also under several threads.

    Args:
        generator: Registered elsewhere, so that it is saved once.
        slots: The tensors to fill, in the order of the flat vector.
    """

    def __init__(self, generator: Generator, slots: Sequence[Slot]) -> None:
        self.generator = generator
        self._evaluate: Callable[[], Tensor] = generator
        self.slots = list(slots)
        self.sizes = [slot.shape.numel() for slot in slots]
        self._evaluation: Evaluation | None = None
        self._tensors: list[Tensor] = []  # views of its flat value, one for each slot
        self._stand_ins: list[StandIn] = []
        # What all slots hold: `_tensors`, or stand-ins. Neither while they change, where Ctrl-C may
        # leave some of both.
        self._is_placed = False
        self.has_stand_ins = False
        # of other adapters a part has no gradient at first where all of them work, as in QAA
        is_watched = generator.is_coupled and all(".lora_" in slot.label for slot in slots)
        self._gradients = Gradients(watched=self.sizes if is_watched else ())
        # PEFT's layers lose their own parameters; from now on a plain tensor has the same name
        for slot in self.slots:
            del slot.owner._parameters[slot.name]
        _register(self)
        generator.register_load_state_dict_pre_hook(_before_loading)
        generator.register_load_state_dict_post_hook(_after_loading)
        self.refresh()
        self.place_stand_ins()

    def refresh(self) -> None:
        """Evaluate the generator if its parameters changed, and place the tensors for the next
        forward pass.

        Raises ConfigError if FSDP or DeepSpeed ZeRO has sharded the generator.
        """
        refuse_sharded(self.generator)
        with _lock:
            self._update(has_new_node=True)
            self._place()

    def refresh_detached(self) -> None:
        """Place the current values, as tensors without a graph, until the next `place_stand_ins` or
        forward pass.
        """
        with _lock:
            self.refresh()
            assert self._evaluation is not None
            self._tensors = self._views(self._evaluation.flat, detached=True)
            self._is_placed = False
            self._place()
            self._tensors = []  # PEFT sets requires_grad of those that it finds in the layers

    def read(self, index: int) -> Tensor:
        """The current tensor of the slot at this position.

        On a CPU the stand-ins stay. On an accelerator, where a comparison waits for all queued
        work, the first reading is the last that compares.
        """
        with _lock:
            self._update_for_reader()
            tensor = self._tensors[index]
            if not tensor.is_cpu:
                self._place()
            return tensor

    def place_for_layer(self) -> bool:
        """Place the current tensors, for a layer that is called without its base, or again by
        activation checkpointing; False if they are placed already.
        """
        if self._is_placed:
            # Without the lock: who has it may wait for the thread of an accelerator, and this may be
            # a backward pass there that computes a checkpointed part again.
            return False
        with _lock:
            if self._is_placed:
                return False
            self._update_for_reader()
            self._place()
            return True

    def _update_for_reader(self) -> None:
        # a backward pass computes parts of a forward pass again, with the values of that
        in_backward = torch._C._current_graph_task_id() != -1
        self._update(compares_values=not in_backward)

    def _update(self, *, compares_values: bool = True, has_new_node: bool = False) -> None:
        """Evaluate if the parameters changed, and let `_tensors` be views of the value.

        They have a node of the training graph if gradients are enabled, the one from before unless
        `has_new_node`.
        """
        self.restore_precision()
        parameters = list(self.generator.parameters())
        transforms: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
        if any(map(transforms.is_functorch_wrapped_tensor, parameters)):
            refuse_transforms()
        # in the evaluation of an earlier call a tangent would be lost
        is_forward_mode = forward_ad._current_level >= 0
        if is_forward_mode and any(
            forward_ad.unpack_dual(p).tangent is not None for p in parameters
        ):
            raise TrainingError(
                "a generator has no forward-mode derivative; use a backward pass, or finite"
                " differences"
            )
        evaluation = self._evaluation
        if evaluation is not None and evaluation.flat._version != evaluation.version:
            self.invalidate()
            refuse_write()
        trained = any(p.requires_grad for p in parameters)
        builds_graph = trained and torch.is_grad_enabled()
        current = self._evaluation
        if current is None or not current.is_current(self.generator, compares_values):
            # hooks of an outer checkpoint or an offload would count the tensors of this graph
            has_transforms = torch._C._are_functorch_transforms_active()  # which have no hooks
            unhooked = (
                nullcontext() if has_transforms else saved_tensors_hooks(Tensor.detach, _same)
            )
            with torch.inference_mode(False), torch.set_grad_enabled(trained), unhooked:
                self._tensors = []  # before, as Ctrl-C may come in between
                current = self._evaluation = Evaluation(self._evaluate, self.generator)
            self._check_flat(current.flat)
        has_node = bool(self._tensors) and self._tensors[0].requires_grad
        needs_node = builds_graph and (has_new_node or not has_node)
        is_frozen = has_node and not trained  # since then
        if not self._tensors or needs_node or is_frozen:
            self._tensors = self._views(current.flat, detached=not trained)
            self._is_placed = False

    def _check_flat(self, flat: Tensor) -> None:
        size = sum(self.sizes)
        if flat.shape != (size,) or flat.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"{type(self.generator).__name__} must return a flat vector ({size},) in float32, one"
                f" number for each parameter of the adapter; it has returned {tuple(flat.shape)} in"
                f" {str(flat.dtype).removeprefix('torch.')}"
            )

    @property
    def is_on_cpu(self) -> bool:
        """Whether a comparison of the parameters waits for nothing."""
        return all(parameter.is_cpu for parameter in self.generator.parameters())

    def evaluate_by(self, evaluate: Callable[[], Tensor]) -> None:
        """Compute the generator's flat values (P,) by `evaluate()` from now on, such as CUDA
        graphs.
        """
        self._evaluate = evaluate
        self.invalidate()

    def replicate(self, model: nn.Module) -> None:
        """Keep the generator equal in all processes from now on, while FSDP2 shards the model."""
        if self._gradients.replicas is None:
            replicas = Replicas(model)
            replicas.copy_from_first(self.generator)
            self.invalidate()
            self._gradients.replicas = replicas

    def cast_slots(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Give the slots the dtype that `fn` of `model.to(...)` gives stock parameters."""
        for slot in self.slots:
            slot.dtype = fn(torch.empty(0, dtype=slot.dtype)).dtype
        self._stand_ins = []
        self.has_stand_ins = False  # of this dtype
        self.invalidate()

    def restore_precision(self) -> None:
        """Undo casts to half precision, which trainers apply to the adapters of quantized
        models.
        """
        for parameter in self.generator.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
                # also of equal values, because its graph no longer reaches the parameter
                self._evaluation = None

    def invalidate(self) -> None:
        """Discard the evaluation: the first operation on an adapter tensor evaluates again."""
        with _lock:
            self._evaluation = None
            self._tensors = []
            self.place_stand_ins()

    def place_stand_ins(self) -> None:
        """Let each operation on an adapter tensor evaluate again if parameters changed.

        Others may write into them, and may call a part of the model, without its hooks.
        """
        with _lock:
            if not self._stand_ins:
                self._stand_ins = [StandIn.of(self, i) for i in range(len(self.slots))]
            if not self.has_stand_ins:
                self._is_placed = False
                for slot, stand_in in zip(self.slots, self._stand_ins, strict=True):
                    slot.put(stand_in)
                self.has_stand_ins = True

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """The generated tensors, detached copies in slot order, with each slot's shape and
        dtype.
        """
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

    def report_unused(self) -> None:
        """Warn at the first step with gradients if none has reached some of the modules."""
        gradients = self._gradients
        if not gradients.watched or gradients.reached is None or not gradients.reached.any():
            return
        modules = [_module_of(slot) for slot in self.slots]
        reached = zip(modules, gradients.reached.tolist(), strict=True)
        used = {module for module, is_reached in reached if is_reached}
        unused = [module for module in dict.fromkeys(modules) if module not in used]
        gradients.watched = ()
        if unused:
            others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            warnings.warn(
                QpeftWarning(
                    f"no gradient has come to {unused[0]}{others} of {len({*modules})} adapted modules"
                    " before this first step. One map generates all of their tensors, so training"
                    " changes what these modules do. If your data never use them, leave them out of"
                    " target_modules"
                ),
                stacklevel=2,
            )

    def _place(self) -> None:
        if not self._is_placed:
            self.has_stand_ins = False
            for slot, tensor in zip(self.slots, self._tensors, strict=True):
                slot.put(tensor)
            self._is_placed = True

    @torch.inference_mode(False)
    def _views(self, private: Tensor, *, detached: bool) -> list[Tensor]:
        """Views of the flat value (P,), one for each slot; `private` has the generator's graph."""
        with torch.set_grad_enabled(not detached):
            flat = private.detach()
            if not detached:
                refuse_transforms()
                # in a tuple, so that autograd does not treat the private graph as an input
                flat = _Boundary.apply(self._gradients, (private,), *self.generator.parameters())
            parts = torch.split(flat, self.sizes)
            tensors = [
                part.view(slot.shape).to(slot.dtype)
                for slot, part in zip(self.slots, parts, strict=True)
            ]
        for slot, tensor in zip(self.slots, tensors, strict=True):
            if tensor.requires_grad:
                copied: Any = _Copy(weakref.ref(tensor), id(slot.owner))
                tensor.__deepcopy__ = copied
                tensor.register_hook = refuse_hook  # type: ignore[method-assign]
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, such as `torch.save(model)`: without the evaluation, and its graph."""
        gradients = Gradients(watched=self._gradients.watched)
        fresh = {"_evaluation": None, "_evaluate": self.generator}
        empty: dict[str, Any] = {"_tensors": [], "_stand_ins": []}
        placed = {"_is_placed": False, "has_stand_ins": False}
        # another thread may replace what is placed before pickle comes to the slots' owners
        slots = [replace(slot, placed=None) for slot in self.slots]
        own = {"_gradients": gradients, "slots": slots}
        return {**vars(self), **fresh, **empty, **placed, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _register(self)
        self.place_stand_ins()

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        """A binding over the copied generator and modules, without the evaluation."""
        new = object.__new__(Binding)
        memo[id(self)] = new
        vars(new).update(self.__getstate__())  # not `copy.copy`, which would place its tensors
        new.generator = copy.deepcopy(self.generator, memo)
        new._evaluate = new.generator
        new.slots = [
            replace(s, owner=copy.deepcopy(s.owner, memo), placed=None) for s in self.slots
        ]
        new.invalidate()
        _register(new)
        return new


# PEFT reads the device of a prefix before the model's forward pass
_WITHOUT_VALUES = [getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_meta")]


class StandIn(Tensor):
    """Stands for an adapter's tensor while its generator's parameters may have changed.

    Each operation on its values asks for the current ones: nothing reads a tensor from before an
    optimizer step, and a step costs one evaluation, at the parameters that its forward pass finds.

    An autograd Function of a layer sees no such operation, and would lose the gradient: the stand-in
    requires one of its own size 0, which PyTorch refuses with an error.
    """

    read: Callable[[], Tensor]
    owner: int  # the id of the module that has it

    @classmethod
    def of(cls, binding: Binding, index: int) -> StandIn:
        """The stand-in for the tensor of the slot at this position; empty, so that nothing uses it
        by mistake.
        """
        parameter = next(binding.generator.parameters(), torch.empty(0))
        slot = binding.slots[index]
        empty = torch.empty(0, dtype=slot.dtype, device=parameter.device)
        stand_in = Tensor._make_subclass(cls, empty, require_grad=True)
        stand_in.read = partial(binding.read, index)
        stand_in.owner = id(slot.owner)
        return stand_in

    @classmethod
    @torch.compiler.disable  # it would trace the evaluation
    def __torch_function__(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _WITHOUT_VALUES:
            return super().__torch_function__(func, types, args, kwargs)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            refuse_write()
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            refuse_hook()
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            func = Tensor.detach  # unlike `data`, it records a write
        args, kwargs = tree_map_only(cls, lambda stand_in: stand_in.read(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor | None:
        return _Copy(self.read, self.owner)(memo)


class _Boundary(torch.autograd.Function):
    """The identity on the flat value, with the generator's parameters as inputs."""

    @staticmethod
    def forward(
        ctx: Any, gradients: Gradients, private: tuple[Tensor], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.parameters = parameters
        ctx.flat = private[0]  # (P,), with the generator's graph
        ctx.runs = 0
        return ctx.flat.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        # `gradient` (P,) is the sum over all views: lora_A, lora_B, ... of every layer
        gradients = ctx.gradients
        # of the forward pass, and not frozen since then, as PyTorch adds nothing to `grad` of those
        pairs = zip(ctx.parameters, ctx.needs_input_grad[2:], strict=True)
        wanted = [p for p, was_trained in pairs if was_trained and p.requires_grad]
        if not wanted:
            return (None,) * (2 + len(ctx.parameters))
        if any(map(_has_hooks, wanted)) and _is_nested():
            raise RuntimeError(
                "reentrant activation checkpointing gives the generator a partial gradient for"
                " each segment, which hooks of its parameters, such as an optimizer in the"
                " backward pass, take for the whole; use"
                " activation_checkpointing_kwargs={'use_reentrant': False}"
            )
        if gradients.watched:
            gradients.watch(gradient)
        ctx.runs += 1
        if gradients.replicas is not None:
            gradient = gradients.replicas.average(gradient)
        elif ctx.runs > 1 and n_processes() > 1:
            raise RuntimeError(
                "the generator received several partial gradients in one backward pass under"
                " distributed training (reentrant activation checkpointing), of which only the"
                " first would be averaged; use activation_checkpointing_kwargs={'use_reentrant':"
                " False}"
            )
        # from here: through the generator's own graph, to one gradient for each parameter
        # Autocast would also apply to a backward pass that is called inside it. Gradients are
        # enabled for nodes that compute with autograd; the simulator's own backward pass still runs
        # without, as `create_graph` is false.
        no_autocast = torch.autocast(gradient.device.type, enabled=False)
        with torch.enable_grad(), no_autocast, exact_products(), _without_hooks(wanted):
            of_wanted = torch.autograd.grad(
                ctx.flat, wanted, gradient, retain_graph=True, allow_unused=True
            )
        if all(g is None for g in of_wanted):  # PyTorch made them new leaves of the graph
            raise RuntimeError("the model was cast or moved since the forward pass; repeat that")
        gradient_of = {id(p): g for p, g in zip(wanted, of_wanted, strict=True)}
        return (None, None, *[gradient_of.get(id(p)) for p in ctx.parameters])


def _is_nested() -> bool:
    """Whether the backward pass runs inside that of another node, as in reentrant checkpointing."""
    n_nodes = 0
    frame = inspect.currentframe()
    while frame is not None:
        n_nodes += frame.f_code is BackwardCFunction.apply.__code__
        frame = frame.f_back
    return n_nodes > 1


def _has_hooks(parameter: Any) -> bool:
    """Whether somebody wants the gradient within the backward pass, as far as PyTorch tells: not by
    a hook of the accumulator node.
    """
    # the optimizers of torch.distributed.optim._apply_optimizer_in_backward, by such a hook
    optimizers = getattr(parameter, "_in_backward_optimizers", None)
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks or optimizers)


@contextmanager
def _without_hooks(parameters: Sequence[Any]) -> Iterator[None]:
    """Within: the hooks of the parameters do nothing in this thread, because PyTorch runs them behind
    the node. In another thread they may be due now.
    """
    for parameter in parameters:
        hooks = parameter._backward_hooks or {}
        for key, hook in list(hooks.items()):
            if not hasattr(hook, "is_outside"):
                hooks[key] = _outside(hook)
    _thread.is_inside = True
    try:
        yield
    finally:
        _thread.is_inside = False


def _outside(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The hook, which does nothing within `_without_hooks`."""

    @wraps(hook)
    def run(gradient: Tensor) -> Any:
        return None if getattr(_thread, "is_inside", False) else hook(gradient)

    run.is_outside = True  # type: ignore[attr-defined]
    return run


def _module_of(slot: Slot) -> str:
    """The name of the module that a LoRA's tensor belongs to."""
    return slot.label.rpartition(".lora_")[0]


def _same(saved: Tensor) -> Tensor:
    """A hook of autograd that changes nothing."""
    return saved


class _Copy:
    """`__deepcopy__` of a generated tensor, which PyTorch refuses to copy: its values.

    None with a copy of its owner, given by the id, where the copied binding places its own.
    """

    def __init__(self, read: Callable[[], Any] | None = None, owner: int = 0) -> None:
        self.read = read
        self.owner = owner

    def __call__(self, memo: dict[int, Any]) -> Tensor | None:
        if self.read is None or self.owner in memo:
            return None
        return self.read().detach().clone()

    def __reduce__(self) -> Any:
        return _Copy, ()  # what is pickled with a tensor, which a loaded binding replaces


def _key(generator: Generator) -> tuple[Any, ...]:
    tensors = [*generator.parameters(), *generator.buffers()]
    # tensors made in inference mode, such as by a server that loads in it, have no version
    states = [(t.data_ptr(), t.is_inference() or t._version, t.device) for t in tensors]
    # which differ between threads while one of them needs exact values
    backends = [circuit.backend for circuit in circuits_in(generator)]
    return *states, *backends


def _before_loading(generator: Generator, *_: Any) -> None:
    """Values are loaded in full precision, to the device of the generator."""
    generator.home = generator.fingerprint.device
    for binding in _live_of(generator.parameters()):
        binding.restore_precision()


def _after_loading(generator: Generator, *_: Any) -> None:
    """Nothing reads an adapter tensor from before the loading."""
    # PEFT's low_cpu_mem_usage assigns tensors of an accelerator
    if generator.fingerprint.device != generator.home:
        generator.to(generator.home)
    for binding in _live_of(generator.parameters()):
        binding.invalidate()


_live: weakref.WeakValueDictionary[int, Binding] = weakref.WeakValueDictionary()


def _register(binding: Binding) -> None:
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


register_optimizer_step_pre_hook(partial(_on_trained, Binding.report_unused))
register_optimizer_step_post_hook(partial(_on_trained, Binding.invalidate))
