"""Quantized parameters: rounded in training with a straight-through gradient, packed in the compact
adapter.

16 bits are float16 values. With b < 16 bits the values of a tensor are in groups of `GROUP`, and
with the smallest value lo and the range r of a group

    d = r / (2^b - 1),   q = round((x - lo) / d) in 0 .. 2^b - 1,   xq = lo + d q

lo and r are stored as float16; r is never so small against lo that rounding errors could change the
codes (`_encode`). Therefore quantizing twice equals quantizing once, and float32 rounding errors do
not change the range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qpeft.errors import TrainingError

GROUP = 256  # values that share a range

_FLOATS = {None: torch.float32, 16: torch.float16}  # by bits
_SMALLEST_NORMAL = 2.0**-14  # below it float16 loses digits


def quantize(x: Tensor, bits: int) -> Tensor:
    """x (n,) rounded to `bits` bits, in its dtype; the gradient is that of the identity."""
    with torch.no_grad():
        rounded = x.half() if bits == 16 else _decode(*_encode(x, bits), bits, len(x))
    # not x + (xq - x): that is xq only up to rounding
    return rounded.to(x.dtype) + (x - x.detach())


def pack(x: Tensor, bits: int | None) -> Tensor:
    """The bytes of x (n,), uint8: floating-point values, or float16 lo and r of each group, then
    the codes.

    Code i has the bits i*b to (i+1)*b of the codes, lowest first.

    Raises TrainingError if a value is not finite or too large for float16.
    """
    x = x.detach()
    if x.is_meta:
        return x.new_empty(stored_bytes(len(x), bits), dtype=torch.uint8)
    floats = x
    stream = x.new_empty(0, dtype=torch.uint8)
    if bits is not None and bits not in _FLOATS:
        floats, codes = _encode(x, bits)
        in_bytes = codes.flatten()[: len(x)].to(torch.uint8).cpu().numpy()  # (n,)
        in_bits = np.unpackbits(in_bytes[:, None], axis=1, count=bits, bitorder="little")  # (n, b)
        packed = np.packbits(in_bits, bitorder="little")
        stream = torch.from_numpy(packed).to(x.device)
    floats = floats.to(_FLOATS.get(bits, torch.float16))
    if bits is not None and not torch.isfinite(floats).all():
        raise TrainingError(
            "parameters to be stored are not finite or beyond float16's range (65504): training has"
            " diverged; use a lower learning rate"
        )
    return torch.cat([floats.flatten().view(torch.uint8), stream])


def unpack(stored: Tensor, n: int, bits: int | None) -> Tensor:
    """The n values stored by `pack`, float32, bit-equal to quantize(x, bits)."""
    if bits is None or bits in _FLOATS:
        return stored.clone().view(_FLOATS[bits]).float()
    n_bytes = -(-n * bits // 8)  # of the codes
    ranges, stream = stored.split([len(stored) - n_bytes, n_bytes])
    in_bits = np.unpackbits(stream.cpu().numpy(), bitorder="little", count=n * bits)  # (n b,)
    in_bytes = np.packbits(in_bits.reshape(n, bits), axis=1, bitorder="little")  # (n, 1)
    codes = torch.from_numpy(in_bytes).to(stored.device).float()
    lo_and_r = ranges.clone().view(torch.float16).float().view(-1, 2)  # (groups, 2)
    return _decode(lo_and_r, _grouped(codes), bits, n)


def stored_bytes(n: int, bits: int | None) -> int:
    """The size of `pack` for n values."""
    if bits is None or bits in _FLOATS:
        return _FLOATS[bits].itemsize * n
    return 4 * -(-n // GROUP) + -(-n * bits // 8)


def _grouped(x: Tensor) -> Tensor:
    """(groups, length) of all values; the last group is padded with its last element."""
    x = x.flatten()
    length = max(1, min(len(x), GROUP))
    return torch.cat([x, x[-1:].expand(-len(x) % length)]).view(-1, length)


def _encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """lo and r (groups, 2), float16 values, and codes (groups, length); all float32.

    lo is rounded by at most |lo| 2^-12, so that d >= |lo| 2^-9 gives the smallest element the code
    0.
    """
    groups = _grouped(x.float())  # (groups, length)
    lo = groups.amin(-1, keepdim=True).half().float()  # (groups, 1)
    width = groups.amax(-1, keepdim=True) - lo
    least = lo.abs() * 2.0 ** (bits - 9)
    r = torch.maximum(width, least).clamp(min=_SMALLEST_NORMAL).half().float()
    most = 2**bits - 1
    codes = torch.round((groups - lo) / (r / most))  # half to even
    return torch.cat([lo, r], dim=-1), codes.clamp(0, most)


def _decode(ranges: Tensor, codes: Tensor, bits: int, n: int) -> Tensor:
    """The n values of these codes: lo + d q, with d = r / (2^b - 1)."""
    lo, r = ranges.split(1, dim=-1)  # (groups, 1) each
    values = lo + r / (2**bits - 1) * codes  # (groups, length)
    return values.flatten()[:n]
