"""TF32: an NVIDIA GPU that rounds the factors of matrix products does not round what is generated."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from variants import VARIANTS, move

from qpeft.circuits.numerics import exact_products, rounds_products
from qpeft.circuits.simulate import Stages

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


class Rounding(TorchDispatchMode):
    """As such a GPU: factors have 10 bits of mantissa where torch's settings ask for TF32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS and rounds_products():
            args = tree_map(_rounded, args)
        return func(*args, **(kwargs or {}))


def _rounded(value):
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def everywhere(value):
    torch.backends.fp32_precision = value


def products(value):
    torch.backends.cuda.matmul.fp32_precision = value


def older(value):
    torch.set_float32_matmul_precision({"tf32": "high", "none": "highest"}[value])


@pytest.fixture(params=[everywhere, products, older])
def set_rounding(request):
    if request.param is not older and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9 has the older setting alone")
    yield request.param
    older("none")
    if hasattr(torch.backends, "fp32_precision"):
        everywhere("none")
        products("none")


@pytest.mark.parametrize("name", ["qpa", "quantum_peft", "sora"])
def test_generated_tensors_are_not_rounded(llama, set_rounding, name):
    model = move(VARIANTS[name].adapt(llama))
    generator = model.base_model.generators["default"]
    exact = generator()
    set_rounding("tf32")
    with Rounding():
        torch.testing.assert_close(generator(), exact, rtol=0, atol=0)


def test_gradients_of_the_circuit_are_not_rounded(llama, ids, set_rounding, monkeypatch):
    seen = []
    original = Stages.backward
    monkeypatch.setattr(
        Stages, "backward", lambda *args: seen.append(rounds_products()) or original(*args)
    )
    model = move(VARIANTS["qpa"].adapt(llama))
    set_rounding("tf32")
    model(input_ids=ids, labels=ids).loss.backward()
    assert seen
    assert not any(seen)


def test_setting_is_that_of_before(set_rounding):
    set_rounding("tf32")
    with exact_products(), exact_products():
        assert not rounds_products()
    assert rounds_products()
    set_rounding("none")
    assert not rounds_products()
    with exact_products():
        assert not rounds_products()
    assert not rounds_products()
