"""Every method on a pretended accelerator that has neither float64 nor complex128, as MPS."""

import copy

import pytest
import torch
from pretended_device import DEVICE, move, pretended_device
from tiny_models import llama
from torch import nn
from variants import QUANTUM_PEFT, VARIANTS, quantum_peft
from variants import move as trained

import qpeft
from qpeft.circuits import amplitude

CASES = VARIANTS | {
    "quantum_peft, pad": quantum_peft({**QUANTUM_PEFT, "construction": "pad"}),
    "quantum_peft, cayley": quantum_peft({**QUANTUM_PEFT, "family": "lie", "lie_map": "cayley"}),
    "quantum_peft in frames of weights": quantum_peft(
        {**QUANTUM_PEFT, "frame": "weights", "frame_rank": 4}
    ),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_method_makes_no_float64_on_an_accelerator(name, ids, tmp_path, monkeypatch):
    # a checkpoint compares the devices that its hooks see, and only those in a backward pass see it
    monkeypatch.setattr(amplitude, "checkpoint", lambda function, *args, **_: function(*args))
    variant = CASES[name]
    base = llama()
    torch.manual_seed(0)
    expected = trained(variant.adapt(copy.deepcopy(base)))(input_ids=ids).logits.detach()
    torch.manual_seed(0)  # the initial values of some hosts are PEFT's
    with pretended_device():
        model = trained(variant.adapt(move(base)))
        output = model(input_ids=ids.to(DEVICE), labels=ids.to(DEVICE))
        assert output.logits.device == DEVICE
        output.loss.backward()
        assert any(p.grad is not None for p in model.parameters())
        assert torch.allclose(output.logits.detach().cpu(), expected, atol=1e-5)
        qpeft.save(model, tmp_path / "adapter")
        if variant.exports:
            qpeft.export(model, tmp_path / "exported")
        if variant.merges:
            merged = model.merge_and_unload()
            assert torch.allclose(merged(input_ids=ids).logits.cpu(), expected, atol=1e-4)


class Backward(torch.autograd.Function):
    """The identity, whose gradient passes through `compute`."""

    @staticmethod
    def forward(ctx, x, compute):
        ctx.compute = compute
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return ctx.compute(grad * x).to(grad), None


@pytest.mark.parametrize(
    "use",
    [
        lambda compute, x: compute(x),
        lambda compute, x: Backward.apply(x, compute).cpu().double().sum().backward(),
    ],
    ids=["forward", "backward"],
)
@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.double(),
        lambda x: x.cpu().double().to(x.device),
        lambda x: torch.eye(2, dtype=torch.float64, device=x.device),
        lambda x: x + torch.eye(2, dtype=torch.float64),
        lambda x: x * (1j * torch.ones(2, 2, dtype=torch.float64)),
        lambda x: move(nn.Linear(2, 2)).double(),
    ],
)
def test_pretended_device_refuses_float64(compute, use):
    with pretended_device():
        x = torch.ones(2, 2, device=DEVICE, requires_grad=True)
        with pytest.raises(RuntimeError, match="a device that has none"):
            use(compute, x)


def test_float64_on_the_cpu_is_allowed():
    with pretended_device():
        x = torch.ones(2, 2, device=DEVICE, requires_grad=True)
        y = Backward.apply(x, lambda grad: 3 * grad.cpu().double())
        assert (2 * y.cpu().double()).to(x).device == DEVICE
        assert (2 * y).cpu().double().device != DEVICE
        y.sum().backward()
        assert x.grad.device == DEVICE
    assert x.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
