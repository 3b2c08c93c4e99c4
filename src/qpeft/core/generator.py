"""The base classes of generators: float32 arithmetic, and a fingerprint of everything that determines the output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from qpeft.errors import ConfigError

if TYPE_CHECKING:
    from qpeft.circuits import Ansatz
    from qpeft.core.binding import Slot
    from qpeft.core.seeded_init import SeededInit


_MOST = 2**24  # parameters of a generator that has more of them than it generates


def check_size(n_parameters: int, n_generated: int) -> None:
    """Raise ConfigError for a generator too large for any use, before its parameters are drawn."""
    if n_parameters > max(_MOST, n_generated):
        raise ConfigError(
            f"the generator would have {n_parameters:,} parameters to generate {n_generated:,}; at most "
            f"{max(_MOST, n_generated):,} are allowed: use a smaller generator, or the stock adapter"
        )


class ParameterGroup(NamedTuple):
    """A group of `qpeft.param_groups`: whether weight decay applies to it, and Adam's eps where it is not the usual."""

    name: str
    decays: bool = False
    eps: float | None = None


ANGLES = ParameterGroup("angles", eps=1e-12)
OTHER = ParameterGroup("other", decays=True)


class FullPrecision(nn.Module):
    """A module that follows the model to another device, but never to a lower precision: angles need float32.

    `groups` assigns the parameters of a child, by the child's name, to a group of `qpeft.param_groups`.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            return fn(tensor) if probe.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(probe.device)

        return super()._apply(move, recurse)


class CircuitModule(nn.Module):
    """Evaluates the probabilities (2^N,) of a circuit, in training on a backend if `qpeft.set_backend` has set one.

    Or of several circuits of one ansatz; `angles` then have a leading axis, and `n_circuits` is overridden.
    """

    backend: Callable[[Tensor], Tensor] | None = None  # instead of the exact simulator
    angles: Any  # called with `initial=True` for the angles before training

    @property
    def ansatz(self) -> Ansatz:
        """The circuit."""
        raise NotImplementedError

    @property
    def is_trained(self) -> bool:
        """Whether its angles are trained."""
        raise NotImplementedError

    @property
    def n_circuits(self) -> int:
        """How many circuits of `ansatz` an evaluation runs."""
        return 1


class Generator(FullPrecision):
    """Computes the flat tensor (P,) of an adapter's parameters from few trainable ones: float32 and deterministic.

    A subclass supplies `forward()`, differentiable once, and a buffer `fingerprint` made by the function of this name.
    """

    fingerprint: Tensor
    needs_fit = False  # whether fit_frames must be called before training
    chunk_shape: tuple[int, int] | None = None  # of `chunks`, if the output consists of chunks

    def __call__(self) -> Tensor:
        """The adapter's parameters, flat (P,), float32 whatever autocast is set to."""
        with torch.autocast(self.fingerprint.device.type, enabled=False):
            return super().__call__()

    def find_broken(self) -> str | None:
        """The name of the first parameter that contains NaN or Inf; None if there is none."""
        return next((name for name, p in self.named_parameters() if not torch.isfinite(p).all()), None)

    def redrawn(self, slots: Sequence[Slot], config: Any, init: SeededInit) -> Generator:
        """An untrained generator like this one, with the initial values of another seed.

        Args:
            slots: The tensors that it fills, in its order.
            config: Its settings, with the other seed.
            init: Draws the initial values of that seed.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot be drawn from another seed; train all adapters of a pool with one seed"
        )

    def chunks(self, *, initial: bool = False) -> Tensor:
        """The output before flattening, or the untrained one; shape `chunk_shape`."""
        raise NotImplementedError

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict as the compact checkpoint stores it."""
        return state

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undo `pack`; a state that is not packed is returned unchanged."""
        return state


def fingerprint(*parts: Any) -> Tensor:
    """SHA-256 of everything that determines the adapter, apart from the trained parameters; uint8 (32,).

    Saved with them, so that they are never loaded with other initial values or settings.
    """
    text = json.dumps(parts, sort_keys=True)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
