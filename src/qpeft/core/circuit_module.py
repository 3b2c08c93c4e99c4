"""Modules that read a circuit."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from qpeft.circuits import Ansatz


class CircuitModule(nn.Module):
    """Reads the probabilities (2^N,) of a circuit, which a backend can supply in training: `qpeft.set_backend`."""

    backend: Callable[[Tensor], Tensor] | None = None  # instead of the exact simulator

    @property
    def ansatz(self) -> Ansatz:
        """The circuit."""
        raise NotImplementedError

    @property
    def is_trained(self) -> bool:
        """Whether its angles are trained."""
        raise NotImplementedError
