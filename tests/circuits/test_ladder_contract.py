"""The public contract, kept by every route and broken by every plausible mistake."""

from functools import partial, reduce

import pytest
import torch

from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.testing import ansatz_contract

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def dense_reference(angles, ladder=None):
    """Probabilities from dense matrices: Kronecker products of the gates on all wires."""
    n_qubits = angles.shape[1]
    eye, flip = torch.eye(2, dtype=angles.dtype), torch.tensor([[0, 1], [1, 0]], dtype=angles.dtype)
    on = torch.diag(torch.tensor([0, 1], dtype=angles.dtype))
    psi = torch.eye(2**n_qubits, dtype=angles.dtype)[0]
    for layer in angles.cpu() / 2:
        turns = [torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])]) for a in layer]
        psi = reduce(torch.kron, turns) @ psi
        for wire in range(n_qubits - 1) if ladder is None else ladder(n_qubits):
            off = [eye] * wire + [eye - on] + [eye] * (n_qubits - wire - 1)
            controlled = [eye] * wire + [on, flip] + [eye] * (n_qubits - wire - 2)
            psi = (reduce(torch.kron, off) + reduce(torch.kron, controlled)) @ psi
    return psi.square().to(angles.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_layers", [1, 2, 8])
@pytest.mark.parametrize("n_qubits", range(1, 7))
@pytest.mark.parametrize("route", [probabilities, group_probabilities, fold_probabilities])
def test_routes_satisfy_the_contract(route, n_qubits, n_layers, device):
    if route is fold_probabilities and n_qubits == 1:
        route = probabilities  # nothing to fold
    ansatz_contract(partial(Ansatz, "ry_ladder", n_qubits, n_layers), route, dense_reference, device=device)


def reversed_wires(angles):
    """The mistake of taking wire 0 for the least significant bit."""
    n_qubits = angles.shape[1]
    return probabilities(angles).view((2,) * n_qubits).permute(*reversed(range(n_qubits))).reshape(-1)


class MixedUpGradient(torch.autograd.Function):
    """Right values, but each gradient entry given to another wire."""

    @staticmethod
    def forward(ctx, angles):
        ctx.save_for_backward(angles)
        return probabilities(angles)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            angles = ctx.saved_tensors[0].detach().requires_grad_()
            (right,) = torch.autograd.grad(probabilities(angles), angles, grad)
        return torch.cat([right[:, :1], right[:, 1:].flip(1)], 1)


MISTAKES = {
    "reversed wires": reversed_wires,
    "ladder upwards": partial(dense_reference, ladder=lambda n: reversed(range(n - 1))),
    "no last ladder": lambda angles: probabilities(angles)[
        torch.arange(16).bitwise_xor(torch.arange(16) >> 1).argsort()
    ],
    "half angles": lambda angles: probabilities(angles / 2),
    "wrong gradient": MixedUpGradient.apply,
    "float64 always": lambda angles: probabilities(angles.double()),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_contract_detects_mistakes(mistake):
    with pytest.raises(AssertionError, match=r"\w"):  # bare assertions have no message
        ansatz_contract(partial(Ansatz, "ry_ladder", 4, 3), mistake, dense_reference)


def overwritten(angles):
    """Keeps its gradient, but changes the angles that it is given."""
    p = probabilities(angles)
    angles.data.zero_()
    return p


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        (overwritten, "changes its angles in place"),
        (lambda angles: probabilities(angles).tolist(), "must return a torch.Tensor, got <class 'list'>"),
        (lambda angles: probabilities(angles)[1:], r"must return shape, dtype and device \(\(16,\), .*got \(\(15,\)"),
        (lambda angles: probabilities(angles).float(), "must return shape, dtype and device"),
        (lambda angles: probabilities(angles).detach(), "have no gradient"),
    ],
)
def test_wrong_outputs_are_named(fast, message):
    with pytest.raises(AssertionError, match=message):
        ansatz_contract(partial(Ansatz, "ry_ladder", 4, 3), fast, dense_reference)


def test_reference_of_another_shape_is_named():
    with pytest.raises(AssertionError, match=r"the dense reference has shape \(8,\), not \(16,\)"):
        ansatz_contract(partial(Ansatz, "ry_ladder", 4, 3), probabilities, lambda a: dense_reference(a)[:8])
