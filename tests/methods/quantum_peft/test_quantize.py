"""Quantised angles: the rounding against the formula in float64, and the file's bytes against the training values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpeft.errors import CheckpointError, TrainingError
from qpeft.methods.quantum_peft.quantize import pack, quantize, stored_sizes, unpack

BITS = st.sampled_from([8, 4, 3, 2, 1])
GROUP_SIZES = st.sampled_from([1, 4, 128])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)


@st.composite
def angles(draw):
    """Angles of any size, also far from zero against their spread, all equal, or tiny."""
    centre = draw(st.floats(-100, 100, width=32))
    spread = 10.0 ** draw(st.integers(-8, 2))
    unit = draw(hnp.arrays(np.float32, draw(SHAPES), elements=st.floats(-1, 1, width=32)))
    return torch.from_numpy((centre + spread * unit).astype(np.float32))


def groups(x, group_size):
    return [part for row in x.reshape(-1, x.shape[-1]).unbind(0) for part in row.split(group_size)]


@given(angles(), BITS, GROUP_SIZES)
def test_error_and_number_of_values(x, bits, group_size):
    rounded = quantize(x, bits, group_size)
    _, header = pack(x, bits, group_size)
    assert rounded.shape == x.shape
    assert rounded.dtype == torch.float32
    for before, after, (lo, hi) in zip(
        groups(x, group_size), groups(rounded, group_size), header.double().tolist(), strict=True
    ):
        d = (hi - lo) / (2**bits - 1)
        noise = 4 * torch.finfo(torch.float32).eps * max(abs(lo), abs(hi))
        assert (after.double() - before.double()).abs().max() <= d / 2 + noise
        assert len(after.unique()) <= 2**bits
        assert lo <= after.min()
        assert after.max() <= hi


@given(angles(), BITS, GROUP_SIZES)
def test_values_are_on_the_grid_of_the_header(x, bits, group_size):
    _, header = pack(x, bits, group_size)
    for before, after, (lo, hi) in zip(
        groups(x, group_size), groups(quantize(x, bits, group_size), group_size), header.double().tolist(), strict=True
    ):
        d = (hi - lo) / (2**bits - 1)
        place = (after.double() - lo) / d
        assert (place - place.round()).abs().max() < 1e-2
        nearest = ((before.double() - lo) / d).clamp(0, 2**bits - 1)
        assert (place - nearest).abs().max() <= 0.51


@given(angles(), BITS, GROUP_SIZES)
def test_unpacked_values_equal_the_training_values(x, bits, group_size):
    codes, header = pack(x, bits, group_size)
    back = unpack(codes, header, x.shape, bits, group_size)
    assert back.dtype == torch.float32
    assert torch.equal(back, quantize(x, bits, group_size))
    n_bytes, n_groups = stored_sizes(x.shape, bits, group_size)
    assert (codes.dtype, codes.shape) == (torch.uint8, (n_bytes,))
    assert (header.dtype, header.shape) == (torch.float16, (n_groups, 2))


@given(angles(), BITS, GROUP_SIZES)
def test_quantizing_twice_equals_once(x, bits, group_size):
    once = quantize(x, bits, group_size)
    assert torch.equal(quantize(once, bits, group_size), once)
    first, second = pack(x, bits, group_size), pack(once, bits, group_size)
    assert torch.equal(unpack(*second, x.shape, bits, group_size), once)
    assert torch.equal(first[0], second[0])


@given(angles(), BITS, st.integers(0, 2**32 - 1))
def test_codes_do_not_depend_on_float32_rounding(x, bits, seed):
    """A loaded adapter has theta = start + scale * tau, which is the stored value up to float32 rounding."""
    once = quantize(x, bits, 128)
    noise = 1 + 4e-7 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1)
    assert torch.equal(quantize(once * noise, bits, 128), once)


@pytest.mark.parametrize(
    ("bits", "n", "group_size", "expected"),
    [(8, 22, 128, (22, 1)), (4, 22, 128, (11, 1)), (3, 22, 128, (9, 1)), (2, 22, 128, (6, 1)), (1, 200, 128, (25, 2))],
)
def test_bytes(bits, n, group_size, expected):
    codes, header = pack(torch.linspace(-3, 3, n), bits, group_size)
    assert (codes.numel(), len(header)) == expected
    assert (codes.numel(), header.numel() * header.element_size()) == (math.ceil(bits * n / 8), 4 * expected[1])


def test_rows_have_separate_ranges():
    x = torch.stack([torch.linspace(-1, 1, 5), torch.linspace(-3, 2, 5)])
    codes, header = pack(x, 3, 128)
    assert header.tolist() == [[-1.0, 1.0], [-3.0, 2.0]]
    assert codes.numel() == math.ceil(2 * 5 * 3 / 8)
    for row, rounded in zip(x, quantize(x, 3, 128), strict=True):
        assert torch.equal(quantize(row, 3, 128), rounded)


def test_code_layout():
    """Lowest bits first: the format of the file, fixed."""
    assert pack(torch.tensor([0.0, 3.0, 1.0, 2.0]), 2, 4)[0].tolist() == [0b10_01_11_00]
    assert pack(torch.tensor([0.0, 7.0, 5.0]), 3, 4)[0].tolist() == [0b01_111_000, 0b1]


def test_half_to_even():
    assert quantize(torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0]), 2, 8).tolist() == [0.0, 0.0, 2.0, 2.0, 3.0]


def test_one_bit_keeps_minimum_and_maximum():
    x = torch.tensor([-2.0, -1.0, 0.75, 1.0])
    assert quantize(x, 1, 4).tolist() == [-2.0, -2.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [0.0, 1.0, -math.pi, 1e-6, 3e4])
def test_equal_angles_are_rounded_to_float16(value):
    x = torch.full((3,), value)
    assert torch.equal(quantize(x, 3, 128), x.half().float())


@given(angles(), BITS)
def test_gradient_is_the_identity(x, bits):
    """Against a loss on the identity: the same incoming gradient arrives unchanged."""
    weights = torch.linspace(-1, 2, x.numel()).reshape(x.shape)
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        rounded = quantize(leaf, bits, 8)
        assert rounded.dtype == dtype
        (gradient,) = torch.autograd.grad((rounded * weights).sum(), leaf)
        assert torch.equal(gradient, weights.to(dtype))


def test_empty_tensors_are_packed():
    x = torch.zeros(2, 0)
    codes, header = pack(x, 3, 128)
    assert (codes.numel(), tuple(header.shape)) == (0, (0, 2))
    assert unpack(codes, header, (2, 0), 3, 128).shape == quantize(x, 3, 128).shape == (2, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
def test_angles_beyond_float16_raise(value):
    with pytest.raises(TrainingError, match="diverged"):
        pack(torch.tensor([0.0, value]), 4, 128)


def test_damaged_files_raise():
    codes, header = pack(torch.linspace(-1, 1, 10), 4, 128)
    for broken in (
        (codes[:-1], header),
        (codes[None], header),
        (codes, header[:0]),
        (codes, torch.full_like(header, math.nan)),
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            unpack(*broken, (10,), 4, 128)
