"""Quantised angles: the rounding against the formula in float64, and the file's bytes against the
training values.
"""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpeft.core import quantize as module
from qpeft.core.quantize import pack, quantize, stored_bytes, unpack
from qpeft.errors import TrainingError

BITS = st.sampled_from([8, 4, 3, 2, 1])
ALL_BITS = st.sampled_from([16, 8, 4, 3, 2, 1])
GROUP_SIZES = st.sampled_from([1, 4, 256])
SIZES = st.integers(1, 200)


@st.composite
def angles(draw):
    """Angles of any size, also far from zero against their spread, all equal, or tiny."""
    centre = draw(st.floats(-100, 100, width=32))
    spread = 10.0 ** draw(st.integers(-8, 2))
    unit = draw(hnp.arrays(np.float32, draw(SIZES), elements=st.floats(-1, 1, width=32)))
    return torch.from_numpy((centre + spread * unit).astype(np.float32))


@contextmanager
def groups_of(size):
    before, module.GROUP = module.GROUP, size
    try:
        yield
    finally:
        module.GROUP = before


def groups(x):
    return x.flatten().split(module.GROUP)


def split(x, bits):
    """The ranges (groups, 2) and the codes of what is stored."""
    stored = pack(x, bits)
    n_codes = math.ceil(bits * x.numel() / 8)
    n_ranges = stored.numel() - n_codes
    return stored[:n_ranges].clone().view(torch.float16).view(-1, 2), stored[n_ranges:]


@given(angles(), BITS, GROUP_SIZES)
def test_values_are_the_nearest_on_the_grid_of_the_header(x, bits, size):
    """No value moves by more than half a step of its group's grid, whose ends the file has."""
    with groups_of(size):
        rounded = quantize(x, bits)
        header, _ = split(x, bits)  # the least value and the width of each group
        of_groups = list(zip(groups(x), groups(rounded), header.double().tolist(), strict=True))
    assert rounded.shape == x.shape
    assert rounded.dtype == torch.float32

    for before, after, (lo, width) in of_groups:
        d = width / (2**bits - 1)
        noise = 4 * torch.finfo(torch.float32).eps * (abs(lo) + width)
        moved = (after.double() - before.double()).abs().max()
        assert moved <= d / 2 + width * 2**-11 + noise  # the header is float16
        assert len(after.unique()) <= 2**bits
        least = max(abs(lo) * 2.0 ** (bits - 9), 2.0**-14)
        assert width <= (1 + 2**-10) * max(before.double().max().item() - lo, least)
        assert lo <= after.min()
        assert after.max() <= lo + width + noise
        place = (after.double() - lo) / d
        assert (place - place.round()).abs().max() < 1e-2


@given(angles(), ALL_BITS, GROUP_SIZES)
def test_unpacked_values_equal_the_training_values(x, bits, size):
    """A loaded adapter has the bits that the last forward pass used."""
    with groups_of(size):
        stored = pack(x, bits)
        back = unpack(stored, len(x), bits)
        assert back.dtype == torch.float32
        assert torch.equal(back, quantize(x, bits))
        assert stored.dtype == torch.uint8
        assert stored.shape == (stored_bytes(len(x), bits),)


def test_values_without_bits_are_stored_exactly():
    x = torch.randn(15)
    assert pack(x, None).numel() == stored_bytes(15, None) == 60
    assert torch.equal(unpack(pack(x, None), 15, None), x)


@given(angles(), BITS, GROUP_SIZES)
@example(1e-6 + torch.linspace(0, 1e-5, 7), 8, 256)  # a range that float16 has few digits for
def test_quantizing_twice_equals_once(x, bits, size):
    """An adapter that is loaded and saved again does not drift."""
    with groups_of(size):
        once = quantize(x, bits)
        assert torch.equal(quantize(once, bits), once)
        first = pack(x, bits)
        second = pack(once, bits)
        assert torch.equal(unpack(second, len(x), bits), once)
    n_codes = math.ceil(bits * x.numel() / 8)
    assert torch.equal(first[-n_codes:], second[-n_codes:])


@given(angles(), BITS, st.integers(0, 2**32 - 1))
def test_codes_do_not_depend_on_float32_rounding(x, bits, seed):
    """Noise in the last digits, as of another machine, changes no code."""
    once = quantize(x, bits)
    noise = 1 + 4e-7 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1)
    assert torch.equal(quantize(once * noise, bits), once)


def test_code_layout():
    """Lowest bits first: the format of the file, fixed."""
    assert split(torch.tensor([0.0, 3.0, 1.0, 2.0]), 2)[1].tolist() == [0b10_01_11_00]
    assert split(torch.tensor([0.0, 7.0, 5.0]), 3)[1].tolist() == [0b01_111_000, 0b1]


@given(angles(), BITS)
def test_gradient_is_the_identity(x, bits):
    """Against a loss on the identity: the same incoming gradient arrives unchanged."""
    weights = torch.linspace(-1, 2, x.numel())
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        rounded = quantize(leaf, bits)
        assert rounded.dtype == dtype
        (gradient,) = torch.autograd.grad((rounded * weights).sum(), leaf)
        assert torch.equal(gradient, weights.to(dtype))


def test_empty_tensors_are_packed():
    stored = pack(torch.zeros(0), 3)
    assert stored.numel() == 0
    assert unpack(stored, 0, 3).shape == quantize(torch.zeros(0), 3).shape == (0,)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        1e5,
    ],
)
def test_angles_beyond_float16_raise(value):
    with pytest.raises(TrainingError, match="diverged"):
        pack(torch.tensor([0.0, value]), 4)
