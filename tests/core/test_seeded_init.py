"""Seeded initial values against an independent Philox; distributions against scipy's tests."""

import hashlib
import math

import numpy as np
import torch
from scipy import stats

from qpeft.core.seeded_init import SeededInit

MASK = 2**64 - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64 with 10 rounds, written from its paper (Salmon et al., 2011)."""
    c = list(counter)
    k = list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def test_stream_is_philox_keyed_by_seed_and_name():
    digest = hashlib.sha256(b"7:angles").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    raw = philox4x64([1, 0, 0, 0], key) + philox4x64([2, 0, 0, 0], key)  # NumPy counts from 1
    expected = [(2 * ((r >> 11) * 2.0**-53) - 1) * math.pi for r in raw]
    drawn = SeededInit(7).uniform("angles", (2, 4), math.pi)

    assert drawn.dtype == torch.float32
    np.testing.assert_array_equal(drawn.numpy(), np.array(expected, dtype=np.float32).reshape(2, 4))


def test_distributions():
    start = SeededInit(3)
    assert (
        stats.kstest(start.uniform("u", (20_000,), 2.0).numpy(), "uniform", args=(-2, 4)).pvalue
        > 1e-3
    )
    assert (
        stats.kstest(start.normal("n", (20_000,), 0.5).numpy(), "norm", args=(0, 0.5)).pvalue > 1e-3
    )


def test_hash_covers_names_and_integers():
    def digest(*names):
        start = SeededInit(0)
        for name in names:
            start.uniform(name, (3,), 1.0)
        return start.hexdigest()

    assert digest("a", "b") == digest("a", "b")
    assert (
        len(
            {
                digest("a"),
                digest("b"),
                digest("a", "b"),
                digest("b", "a"),
            }
        )
        == 4
    )
