"""The contract of an ansatz and its fast simulator."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from qpeft.circuits.circuit_checks import check_angle_shape, check_gates
from qpeft.circuits.gates import gate_probabilities
from qpeft.errors import ConfigError

Probabilities = Callable[[Tensor], Tensor]


def ansatz_contract(
    make: Callable[[], Ansatz],
    fast: Probabilities,
    dense_reference: Probabilities,
    *,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Check the contract of an ansatz; raises AssertionError at the first violation.

    Checked: the consistency of gates and angles; shape, dtype and device of the output; that the angles are not changed
    in place; values against both references (1e-12) and in float32 (2e-6);
    gradients against gate-by-gate autograd and against parameter shift (1e-10); norm, period and repeatability.

    Args:
        make: Returns the circuit as data.
        fast: From angles to probabilities (2**N,), by the simulation to be tested.
        dense_reference: The same without qpeft's code, for example by dense matrices.
        device: Device of the angles.
        seed: Of the random angles.
    """
    ansatz = make()
    _check_data(ansatz)
    draw = torch.Generator().manual_seed(seed)
    angles = (torch.rand(ansatz.angle_shape, generator=draw, dtype=torch.float64) * 2 - 1) * pi
    weights = torch.randn(2**ansatz.n_qubits, generator=draw, dtype=torch.float64).to(device)
    angles = angles.to(device)
    _check_values(ansatz, fast, dense_reference, angles)
    _check_gradient(ansatz, fast, angles, weights)


def _check_data(ansatz: Ansatz) -> None:
    title = f"ansatz {ansatz.name}"
    try:
        gates, shape = list(ansatz.gates()), ansatz.angle_shape
        check_angle_shape(title, shape)
        check_gates(title, ansatz.n_qubits, shape, ansatz.layers())
    except ConfigError as error:
        raise AssertionError(str(error)) from error
    assert ansatz.angle_shape == shape, "angle_shape differs between two calls"
    assert [gate for layer in ansatz.layers() for gate in layer] == gates, "the gates differ between two calls"
    assert ansatz.draw().count("q") == ansatz.n_qubits, "the drawing must label every wire once"


def _check_values(ansatz: Ansatz, fast: Probabilities, dense_reference: Probabilities, angles: Tensor) -> None:
    kept = angles.clone()
    p = fast(angles)
    _check_output(p, ansatz, angles)
    assert torch.equal(angles, kept), "the fast simulation changes its angles in place"
    reference = torch.as_tensor(dense_reference(kept.clone()))
    assert reference.shape == p.shape, f"the dense reference has shape {tuple(reference.shape)}, not {tuple(p.shape)}"
    _close(p, reference, 1e-12, "dense reference")
    _close(p, gate_probabilities(ansatz, angles), 1e-12, "gate-by-gate reference")
    _close(p.sum(), torch.ones_like(p[0]), 1e-12, "norm")
    _close(fast(angles + 2 * pi), p, 1e-12, "period 2 pi")
    assert torch.equal(fast(angles), p), "two evaluations differ"
    single = fast(angles.float())
    _check_output(single, ansatz, angles.float())
    _close(single.double(), p, 2e-6, "float32")


def _check_output(p: Tensor, ansatz: Ansatz, angles: Tensor) -> None:
    wanted = (2**ansatz.n_qubits,), angles.dtype, angles.device
    assert isinstance(p, Tensor), f"the fast simulation must return a torch.Tensor, got {type(p)}"
    found = tuple(p.shape), p.dtype, p.device
    assert found == wanted, f"the fast simulation must return shape, dtype and device {wanted}, got {found}"


def _check_gradient(ansatz: Ansatz, fast: Probabilities, angles: Tensor, weights: Tensor) -> None:
    gradient = _gradient(fast, angles, weights)
    by_gates = _gradient(lambda at: gate_probabilities(ansatz, at), angles, weights)
    _close(gradient, by_gates, 1e-10, "gradient against gate-by-gate autograd")
    _close(gradient, _parameter_shift(fast, angles, weights), 1e-10, "gradient against parameter shift")
    constant = _gradient(fast, angles, torch.ones_like(weights))
    _close(constant, torch.zeros_like(constant), 1e-12, "gradient of the norm")


def _gradient(probabilities: Probabilities, angles: Tensor, weights: Tensor) -> Tensor:
    at = angles.clone().requires_grad_()
    value = probabilities(at) @ weights
    assert value.requires_grad, "the probabilities have no gradient: do not detach them, nor leave torch"
    (gradient,) = torch.autograd.grad(value, at)
    return gradient


def _parameter_shift(probabilities: Probabilities, angles: Tensor, weights: Tensor) -> Tensor:
    shifts = torch.eye(angles.numel(), dtype=angles.dtype, device=angles.device).view(-1, *angles.shape) * (pi / 2)
    values = [(probabilities(angles + shift) - probabilities(angles - shift)) @ weights / 2 for shift in shifts]
    return torch.stack(values).view_as(angles)


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    distance = (found - expected).abs().max().item()
    assert distance <= tolerance, f"{what}: off by {distance:.1e}, the tolerance is {tolerance:.0e}"
