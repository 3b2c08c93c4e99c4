"""Reproducible initial values: the same on every device, version and thread count.

A stream is keyed by SHA-256 of "seed:name" and consists of the raw 64-bit integers of NumPy's Philox bit generator,
which NumPy guarantees not to change. They are converted to values in float64, so a checkpoint stores only the seed and
a hash of the drawn integers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class SeededInit:
    """Draws named tensors from one seed and hashes the drawn integers."""

    device = "cpu"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._digest = hashlib.sha256()

    def uniform(self, name: str, shape: Sequence[int], bound: float) -> Tensor:
        """Uniform on [-bound, bound), float32, shape `shape`."""
        unit = self._unit(name, math.prod(shape))
        return _tensor((2.0 * unit - 1.0) * bound, shape)

    def normal(self, name: str, shape: Sequence[int], std: float = 1.0) -> Tensor:
        """Normal with mean 0 (Box-Muller, one value per pair of integers), float32, shape `shape`."""
        unit = self._unit(name, 2 * math.prod(shape)).reshape(2, -1)
        radius = np.sqrt(-2.0 * np.log1p(-unit[0]))  # 1 - u lies in (0, 1]: the logarithm is finite
        return _tensor(std * radius * np.cos(2.0 * math.pi * unit[1]), shape)

    def hexdigest(self) -> str:
        """SHA-256 over the names and integers drawn so far, in the order of drawing."""
        return self._digest.hexdigest()

    def _unit(self, name: str, n: int) -> np.ndarray:
        """n float64 values in [0, 1) with 53 random bits each."""
        key = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        raw = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")).random_raw(n)
        self._digest.update(name.encode())
        self._digest.update(raw.astype("<u8").tobytes())
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _tensor(values: np.ndarray, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))
