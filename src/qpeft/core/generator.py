"""The base classes of generators: float32 arithmetic, and a fingerprint of everything that
determines the output.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from qpeft.backends import CircuitRun, Jobs
from qpeft.circuits.numerics import exact_products
from qpeft.core.exact_rank import Ranks, without_zero_ranks
from qpeft.errors import CheckpointError, QpeftWarning

if TYPE_CHECKING:
    from qpeft.circuits import Ansatz

State = dict[str, Tensor]  # a state dict: tensors by their names in a module or a file


class ParameterGroup(NamedTuple):
    """A group of `qpeft.param_groups`: whether weight decay applies to it, and Adam's eps where it
    is not the usual.
    """

    name: str
    decays: bool = False
    eps: float | None = None


ANGLES = ParameterGroup("angles", eps=1e-12)
OTHER = ParameterGroup("other", decays=True)


class FullPrecision(nn.Module):
    """A module that follows the model to another device, but never to a lower precision: angles
    need float32.

    `groups` assigns the parameters of a child, by the child's name, to a group of
    `qpeft.param_groups`. With `is_coupled`, training one generated tensor changes the others, so that
    a module to which no gradient comes is reported.

    Raises CheckpointError if a state dict with other initial values or settings is loaded.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {}
    is_coupled: ClassVar[bool] = False
    _identity: Tensor  # the buffer `fingerprint` as it was made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            if probe.dtype.itemsize < min(tensor.dtype.itemsize, 4):  # the bytes of float32
                return tensor.to(probe.device)
            moved = fn(tensor)
            # `to_empty` would discard initial values, which no state dict has
            return moved if moved is tensor else moved.copy_(tensor)

        return super()._apply(move, recurse)

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers' `load_adapter` sets buffers, and calls no `load_state_dict`
        is_loaded = isinstance(value, Tensor) and not value.is_meta
        if name == "fingerprint" and name in self._buffers and is_loaded:
            self._check(value, type(self).__name__)
        super().__setattr__(name, value)

    def _check(self, saved: Tensor, owner: str) -> None:
        if not is_fingerprint(saved, self._identity):
            raise CheckpointError(
                f"this state dict has other initial values or settings than {owner}, such as another"
                " seed; make the adapter with the settings of the saved one"
            )

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        super().register_buffer(name, tensor, persistent)
        if name == "fingerprint" and tensor is not None:
            self._identity = tensor.clone()

    def take_fingerprint(self) -> None:
        """The buffer `fingerprint` was written with the other buffers, by those of another process."""
        self._identity = self.fingerprint.clone()  # type: ignore[operator]

    @property
    def _draws(self) -> bool:
        """Whether the output depends on values that are no parameters, such as drawn ones."""
        return "fingerprint" in self._buffers and any(b.is_floating_point() for b in self.buffers())

    def _save_to_state_dict(self, destination: State, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        key = f"{prefix}fingerprint"
        if key in destination:  # averages of models change the buffer, or write into a state dict
            destination[key] = self._identity.to(destination[key].device, copy=True)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: State, prefix: str, *args: Any
    ) -> None:
        key = f"{prefix}fingerprint"
        if key in state:
            self._check(state[key], prefix[:-1])
            state[key] = self._identity.to(state[key].device, copy=True)
        elif self._draws and any(name.startswith(prefix) for name in state):
            warnings.warn(
                "this state dict has parameters of an adapter without their fingerprint, such as only"
                " what is trained: it is right in the model that it comes from, or one with the same"
                " initial values; in another one it is wrong, which cannot be seen",
                QpeftWarning,
                stacklevel=2,
            )
        super()._load_from_state_dict(state, prefix, *args)  # type: ignore[arg-type]


_thread = local()  # how often this thread is within `exact_circuits`


@contextmanager
def exact_circuits() -> Iterator[None]:
    """Within: this thread computes circuits exactly, whatever their backends. Others do not."""
    _thread.exact = getattr(_thread, "exact", 0) + 1
    try:
        yield
    finally:
        _thread.exact -= 1


class CircuitModule(nn.Module):
    """Evaluates the probabilities (2^N,) of a circuit, in training on a backend if
    `qpeft.set_backend` has set one.

    Or of several circuits of one ansatz; `angles`, in radians, then have a leading axis.
    """

    _backend: Callable[[Tensor], Tensor] | None = None
    ansatz: Ansatz
    angles: Any  # called with `initial=True` for the angles before training
    is_trained: bool  # whether the angles are
    n_circuits: int = 1  # that an evaluation runs

    @property
    def backend(self) -> Callable[[Tensor], Tensor] | None:
        """What runs the circuit instead of the exact simulator: angles, float32, in the shape of the
        ansatz -> probabilities (2^N,), float32. None without a backend, and where values must be
        exact, as in an export.
        """
        return None if getattr(_thread, "exact", 0) else self._backend

    @backend.setter
    def backend(self, run: Callable[[Tensor], Tensor] | None) -> None:
        self._backend = run

    def run_on(self, jobs: Jobs) -> CircuitRun:
        """What runs the circuit in training, as jobs of a backend.

        Raises ConfigError if the backend cannot run it.
        """
        return CircuitRun(self.ansatz, jobs, self.is_trained, self.n_circuits)


def circuits_in(module: nn.Module) -> list[CircuitModule]:
    """The circuits of a generator, or of several."""
    return [inner for inner in module.modules() if isinstance(inner, CircuitModule)]


class Generator(FullPrecision):
    """Computes the flat tensor (P,) of an adapter's parameters from few trainable ones: float32 and
    deterministic.

    A subclass supplies `forward()`, differentiable once, and a buffer `fingerprint` made by the
    function of this name.
    """

    fingerprint: Tensor
    home: torch.device  # where it was before a checkpoint was loaded
    needs_fit = False  # whether fit_frames must be called before training
    is_compression = True  # whether fewer parameters are trained than generated
    n_unused = 0  # generated values without effect, which an export leaves out
    is_reordered = False  # whether a file records another order of tensors than the base's

    def __call__(self) -> Tensor:
        """The adapter's parameters, flat (P,), float32 whatever autocast and TF32 are set to."""
        for circuit in circuits_in(self):
            run = circuit.backend
            if isinstance(run, CircuitRun) and run.jobs.shots is not None:
                run.state = _digest(self.parameters())
        with torch.autocast(self.fingerprint.device.type, enabled=False), exact_products():
            return super().__call__()

    def use_base(self, base: nn.Module) -> None:
        """Take what the base model determines, such as frames; called once, after the adapter was
        injected into it.
        """

    def plan_sizes(self) -> dict[str, Any]:
        """What `qpeft.plan` shows next to the parameters, such as `n_qubits` of the largest
        circuit.
        """
        return {}

    def export(self, labels: Sequence[str], values: list[Tensor], config: Any) -> Ranks:
        """The tensors of the adapter without what has no effect.

        `values` are all tensors, with the labels, shapes and dtypes of the slots, and `config` the
        stock config, which this describes the ranks in.
        """
        return without_zero_ranks(labels, values, config)

    def pack(self, state: State) -> State:
        """The state dict as the compact adapter stores it."""
        return state

    def unpack(self, state: State) -> State:
        """Undo `pack`; a state that is not packed is returned unchanged."""
        return state


def _digest(parameters: Iterable[Tensor]) -> bytes:
    contents = (p.detach().float().cpu().numpy().tobytes() for p in parameters)
    return hashlib.sha256(b"".join(contents)).digest()


def as_index(buffer: Tensor) -> Tensor:
    """The indices in a buffer, which contains them as floats: averages of models include buffers,
    and cut off the fraction of integers, so that 3 would become 2.
    """
    return buffer.round().long()


_MOST_AVERAGED = 100  # state dicts of a wrapped sum: more could be mistaken for another fingerprint


def is_fingerprint(saved: Tensor, own: Tensor) -> bool:
    """Whether `saved` is the fingerprint `own`, or an average of equal ones up to rounding, as in
    federated learning.

    Also the usual loop, which adds n state dicts and then divides: its sum of bytes is one modulo
    256.
    """
    if saved.shape != own.shape:
        return False
    bytes_ = own.cpu().double()
    found = saved.cpu().double()
    numbers = torch.arange(1.0, _MOST_AVERAGED + 1, dtype=torch.float64)[:, None]
    wrapped = (bytes_ * numbers).remainder(256) / numbers  # (numbers of state dicts, bytes)
    error = (torch.cat([bytes_[None], wrapped]) - found).abs().amax(dim=1)
    return bool((error[0] < 0.5) or (error[1:] < 1e-3).any())


def fingerprint(*parts: Any) -> Tensor:
    """SHA-256 of everything that determines the adapter, apart from the trained parameters; uint8
    (32,).

    Saved with them, so that they are never loaded with other initial values or settings.
    """
    text = json.dumps(parts, sort_keys=True)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
