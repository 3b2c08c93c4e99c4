"""The contract of an ansatz."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi

import torch
from torch import Tensor

from qpeft.circuits import Ansatz, exact_probabilities, gate_probabilities
from qpeft.testing.checks import close, run_checks, same

Probabilities = Callable[[Tensor], Tensor]


def ansatz_contract(
    make: Callable[[], Ansatz],
    dense_reference: Probabilities,
    *,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Check the contract of an ansatz; raises AssertionError at the first violation.

    Checked: the consistency of gates and angles; probabilities against both references (1e-12) and
    in float32 (2e-6); gradients against gate-by-gate autograd and against parameter shift (1e-10);
    norm, period and repeatability.

    Args:
        make: Returns the circuit as data.
        dense_reference: From angles to probabilities (2**N,), without qpeft's code, for example by
            dense matrices.
        device: Device of the angles; one with float64, so not Apple's MPS.
        seed: Of the random angles.
    """
    ansatz = make()
    draw = torch.Generator().manual_seed(seed)
    by_gates = partial(gate_probabilities, ansatz)
    simulated = partial(exact_probabilities, ansatz)
    run_checks(("the ansatz is inconsistent", lambda: by_gates(torch.zeros(ansatz.angle_shape))))
    assert [*make().gates()] == [*ansatz.gates()], "the gates differ between two calls"
    assert ansatz.draw().count("q") == ansatz.n_qubits, "the drawing must label every wire once"
    uniform = torch.rand(ansatz.angle_shape, generator=draw, dtype=torch.float64)
    angles = (pi * (uniform * 2 - 1)).to(device)
    weights = torch.randn(2**ansatz.n_qubits, generator=draw, dtype=torch.float64).to(device)
    p = simulated(angles)
    same(simulated(angles), p, "two evaluations differ")
    close(p, torch.as_tensor(dense_reference(angles.clone())), 1e-12, "dense reference")
    close(p, by_gates(angles), 1e-12, "gate-by-gate reference")
    close(p.sum(), torch.ones_like(p[0]), 1e-12, "norm")
    close(simulated(angles.float()).double(), p, 2e-6, "float32")

    gradient = _gradient(simulated, angles, weights)
    by_autograd = _gradient(by_gates, angles, weights)
    close(gradient, by_autograd, 1e-10, "gradient against gate-by-gate autograd")
    constant = _gradient(simulated, angles, torch.ones_like(weights))
    close(constant, torch.zeros_like(constant), 1e-12, "gradient of the norm")
    if ansatz.has_shift_rule:
        close(simulated(angles + 2 * pi), p, 1e-12, "period 2 pi")
        eye = torch.eye(angles.numel(), dtype=angles.dtype, device=device)
        shifts = eye.view(-1, *angles.shape) * (pi / 2)
        shifted = (simulated(angles + shifts) - simulated(angles - shifts)) @ weights / 2
        close(gradient, shifted.view_as(angles), 1e-10, "gradient against parameter shift")


def _gradient(probabilities: Probabilities, angles: Tensor, weights: Tensor) -> Tensor:
    at = angles.clone().requires_grad_()
    return torch.autograd.grad(probabilities(at) @ weights, at)[0]
