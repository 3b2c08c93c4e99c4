"""Quantized angles: rounded in training with a straight-through gradient, packed in the compact adapter.

Each row of the last axis (the angles of one matrix) is divided into groups of `group_size`; with 0 all values are one
group. 16 bits are float16 values, without groups. With b < 16 bits and a group's
range from lo to hi

    d = (hi - lo) / (2^b - 1),   q = round((x - lo) / d) in 0 .. 2^b - 1,   xq = lo + d q

lo and hi are stored as float16. A range so narrow that their rounding could change the codes is widened to 2^(b+1)
float16 steps of lo (`_ranges`). Therefore |xq - x| <= d/2, quantizing twice equals quantizing once, and float32
rounding errors do not change the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qpeft.errors import CheckpointError, TrainingError

HALF = 16  # bits of float16

_FLOAT16_STEP = 2.0**-11  # relative to the next larger power of two
_SMALLEST_NORMAL = 2.0**-13  # below it float16 steps are constant


def quantize(x: Tensor, bits: int, group_size: int) -> Tensor:
    """x (..., n) rounded to `bits` bits, same shape and dtype; the gradient is that of the identity."""
    with torch.no_grad():
        if bits == HALF:
            rounded = x.half().float()
        else:
            shape, group_size = _rows(x.shape, group_size)
            lo, hi, codes = _encode(x.reshape(shape), bits, group_size)
            rounded = _decode(lo, hi, codes, bits, shape).view(x.shape)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded.to(x.dtype)
    return rounded.to(x.dtype) + (x - x.detach())  # not x + (xq - x): that is xq only up to rounding


def pack(x: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes and ranges of x (..., n), on its device.

    Returns:
        codes: uint8 (bytes,); code i has the bits i*b to (i+1)*b of the stream, lowest first, row by row.
        header: float16 (rows * groups, 2), lo and hi.

    Raises:
        TrainingError: an angle is not finite or too large for a float16 range.
    """
    shape, group_size = _rows(x.shape, group_size)
    x = x.detach().reshape(shape)
    if bits == HALF:
        return _finite(x.half()).flatten().view(torch.uint8), x.new_empty(0, 2, dtype=torch.float16)
    lo, hi, codes = _encode(x, bits, group_size)
    header = _finite(torch.cat([lo, hi], dim=-1).reshape(-1, 2).half())
    flat = codes.flatten(-2)[..., : x.shape[-1]].to(torch.uint8).reshape(-1, 1).cpu().numpy()
    stream = np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little")
    return torch.from_numpy(stream).to(x.device), header


def unpack(codes: Tensor, header: Tensor, shape: Sequence[int], bits: int, group_size: int) -> Tensor:
    """The values stored by `pack`, float32 of shape `shape`, bit-equal to quantize(x, bits, group_size).

    Raises:
        CheckpointError: codes or header do not have the sizes for `shape`, or the header is not finite.
    """
    expected = stored_sizes(shape, bits, group_size)
    if codes.dtype != torch.uint8 or not header.is_floating_point():
        raise CheckpointError(
            f"the packed angles are {codes.dtype} with a header of {header.dtype}, expected torch.uint8 and floating "
            "point; they are damaged"
        )
    shapes = [list(codes.shape), list(header.shape)]
    if shapes != (wanted := [[expected[0]], [expected[1], 2]]) or not torch.isfinite(header).all():
        raise CheckpointError(
            f"the packed angles have codes and a header of shapes {shapes}, expected {wanted} and finite values; they "
            "are damaged or were written with other settings"
        )
    if bits == HALF:
        return codes.contiguous().view(torch.float16).float().view(*shape)
    wanted_shape = shape
    shape, group_size = _rows(shape, group_size)
    *rows, n = shape
    size = _group_length(n, group_size)
    count = math.prod(shape)
    stream = np.unpackbits(codes.cpu().numpy(), bitorder="little", count=count * bits).reshape(count, bits)
    values = torch.from_numpy(np.packbits(stream, axis=1, bitorder="little")).to(header.device)
    lo, hi = header.float().reshape(*rows, -(-n // size), 2).split(1, dim=-1)
    decoded = _decode(lo, hi, _grouped(values.reshape(*shape), group_size).float(), bits, shape)
    return decoded.view(*wanted_shape)


def stored_sizes(shape: Sequence[int], bits: int, group_size: int) -> tuple[int, int]:
    """Bytes of codes and number of groups (4 bytes of header each) for angles of shape `shape`."""
    if bits == HALF:
        return 2 * math.prod(shape), 0
    (*rows, n), group_size = _rows(shape, group_size)
    return -(-math.prod(shape) * bits // 8), math.prod(rows) * -(-n // group_size)


def _rows(shape: Sequence[int], group_size: int) -> tuple[tuple[int, ...], int]:
    """The shape of rows that have groups of their own, and the size of these groups."""
    return (tuple(shape), group_size) if group_size else ((n := math.prod(shape),), max(1, n))


def _finite(stored: Tensor) -> Tensor:
    if not torch.isfinite(stored).all():
        raise TrainingError(
            "angles to be stored are not finite or beyond float16's range (65504): training has diverged; "
            "use a lower learning rate"
        )
    return stored


def _encode(x: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """lo and hi (..., groups, 1), codes (..., groups, length), all float32."""
    groups = _grouped(x.float(), group_size)
    lo, hi = _ranges(groups, bits)
    codes = torch.round((groups - lo) / _step(lo, hi, bits))  # half to even
    return lo, hi, codes.clamp(0, 2**bits - 1)


def _decode(lo: Tensor, hi: Tensor, codes: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    # at most hi, so that the range of the result is the same
    values = torch.minimum(lo + _step(lo, hi, bits) * codes, hi)
    return values.flatten(-2)[..., : shape[-1]]


def _step(lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    return (hi - lo) / (2**bits - 1)


def _ranges(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Each group's lo and hi as float16 values, (..., groups, 1) float32.

    hi - lo is at least 2^(b+1) steps of lo, so d >= 2 steps of lo, and then also d >= the step of hi: the smallest
    element gets code 0, and the largest the last code unless the range was widened, where hi depends on lo alone.
    """
    lo = groups.amin(-1, keepdim=True).half().float()
    hi = groups.amax(-1, keepdim=True)
    return lo, torch.maximum(hi, lo + 2.0 ** (bits + 1) * _float16_step(lo)).half().float()


def _float16_step(x: Tensor) -> Tensor:
    """Distance from x to the next float16 value away from 0, same shape."""
    mantissa, _ = torch.frexp(x)
    above = torch.where(x == 0, 0.0, x / mantissa)  # the power of two, exactly; exp2 may round
    return above.clamp(min=_SMALLEST_NORMAL) * _FLOAT16_STEP


def _grouped(x: Tensor, group_size: int) -> Tensor:
    """(..., n) -> (..., groups, length); the last group is padded with its last element."""
    n = x.shape[-1]
    size = _group_length(n, group_size)
    n_groups = -(-n // size)
    if n_groups * size == n:
        return x.unflatten(-1, (n_groups, size))
    positions = torch.arange(n_groups * size, device=x.device).clamp(max=n - 1)
    return x[..., positions].unflatten(-1, (n_groups, size))


def _group_length(n: int, group_size: int) -> int:
    return max(1, min(n, group_size))
