"""Meyer and Wallach's Q: how strongly each qubit of a state is entangled with all others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qpeft.diagnostics.finding import Measurement
from qpeft.diagnostics.haar import HaarLaw
from qpeft.errors import ConfigError


@dataclass(frozen=True)
class Entanglement(Measurement):
    """Mean of Q over states, from 0 (a product state) to 1; `error` is its standard error, None for a single state.

    `expected` is the mean over random states of the same field.
    """

    field: str
    n_qubits: int
    n_states: int
    mean: float
    error: float | None
    expected: float

    @property
    def sentence(self) -> str:
        if self.n_qubits == 1:
            return "A single qubit cannot be entangled."
        law = f"random {self.field} states have {self.expected:.4f} on average"
        if self.error is None:
            return f"This state has Q = {self.mean:.4f}; {law}."
        found = f"Q = {self.mean:.4f} ± {self.error:.1g}; {law}"
        gap = self.mean - self.expected
        if abs(gap) <= 2 * self.error:
            return f"The qubits are entangled as in random states ({found})."
        return f"The qubits are {'more' if gap > 0 else 'less'} entangled than in random states ({found})."


def meyer_wallach(states: Tensor) -> Entanglement:
    """Q = 2 (1 - 1/N sum_i Tr rho_i^2), rho_i the reduced state of qubit i, averaged over states.

    Args:
        states: (S, 2^N) or (2^N,), normalised. Real amplitudes are compared with real random states, whose mean is
            (D-2)/(D+2) with D = 2^N, complex ones with complex states, (D-2)/(D+1).

    Raises:
        ConfigError: Another shape, or states that are not normalised.
    """
    psi = _rows(states)
    n_qubits = (psi.shape[1] - 1).bit_length()
    purities = torch.stack([_purity(psi, wire) for wire in range(n_qubits)])  # (N, S)
    q = 2 * (1 - purities.mean(0))
    field = "complex" if psi.is_complex() else "real"
    return Entanglement(
        field=field,
        n_qubits=n_qubits,
        n_states=len(q),
        mean=q.mean().item(),
        error=q.std().item() / math.sqrt(len(q)) if len(q) > 1 else None,
        expected=HaarLaw(field, psi.shape[1]).entanglement,
    )


def _purity(psi: Tensor, wire: int) -> Tensor:
    """Tr rho^2 of one qubit's reduced state, (S,)."""
    zero, one = psi.view(len(psi), 2**wire, 2, -1).unbind(2)
    zero, one = zero.flatten(1), one.flatten(1)
    overlap = (zero.conj() * one).sum(1).abs().square()
    return zero.abs().square().sum(1).square() + one.abs().square().sum(1).square() + 2 * overlap


def _rows(states: Tensor) -> Tensor:
    size = states.shape[-1] if states.ndim in (1, 2) else 0
    if states.numel() == 0 or size < 2 or size & (size - 1):
        raise ConfigError(f"states must have shape (states, 2**n_qubits) or (2**n_qubits,), got {tuple(states.shape)}")
    psi = torch.atleast_2d(states.detach()).cpu()
    psi = psi.to(torch.complex128 if psi.is_complex() else torch.float64)
    if not ((psi.norm(dim=1) - 1).abs() < 1e-3).all():
        raise ConfigError("states must have norm 1; give amplitudes, not probabilities")
    return psi
