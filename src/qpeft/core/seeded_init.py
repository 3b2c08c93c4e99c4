"""Reproducible initial values: the same on every device, version and thread count.

A stream is keyed by SHA-256 of "seed:name" and consists of the raw 64-bit integers of NumPy's
Philox bit generator, which NumPy guarantees not to change. They are converted to values in float64,
so a checkpoint stores only the seed and a hash of the drawn integers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class SeededInit:
    """Draws named tensors from one seed and hashes the drawn integers; on the "meta" device it
    draws no values.
    """

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self.seed = seed
        self.device = device
        self._digest = hashlib.sha256()

    def uniform(self, name: str, shape: Sequence[int], bound: float) -> Tensor:
        """Uniform on [-bound, bound), float32, shape `shape`."""
        return self._drawn(name, shape, 1, lambda unit: (2.0 * unit[0] - 1.0) * bound)

    def normal(self, name: str, shape: Sequence[int], std: float = 1.0) -> Tensor:
        """Normal with mean 0 (Box-Muller, one value per pair of integers), float32, shape
        `shape`.
        """

        def box_muller(unit: np.ndarray) -> np.ndarray:
            # 1 - u lies in (0, 1]: the logarithm is finite
            radius = np.sqrt(-2.0 * np.log1p(-unit[0]))
            return std * radius * np.cos(2.0 * math.pi * unit[1])

        return self._drawn(name, shape, 2, box_muller)

    def orthonormal(self, name: str, width: int, rank: int) -> Tensor:
        """Uniform over all orthonormal columns, float32, shape (width, rank)."""
        basis, triangle = torch.linalg.qr(self.normal(name, (width, rank)).double())
        # the decomposition whose triangle has a positive diagonal is unique
        signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0)  # (rank,)
        return (basis * signs).float()

    def hexdigest(self) -> str:
        """SHA-256 over the names and integers drawn so far, in the order of drawing."""
        return self._digest.hexdigest()

    def _drawn(
        self, name: str, shape: Sequence[int], n: int, of: Callable[[np.ndarray], np.ndarray]
    ) -> Tensor:
        """`of` n rows of float64 numbers in [0, 1) with 53 random bits each."""
        if self.device == "meta":
            return torch.empty(tuple(shape), device="meta")
        key = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        philox = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8"))
        raw = philox.random_raw(n * math.prod(shape))
        self._digest.update(name.encode())
        self._digest.update(raw.astype("<u8").tobytes())
        high_bits = raw >> np.uint64(11)  # 53 of 64
        unit = high_bits.astype(np.float64) * 2.0**-53
        values = of(unit.reshape(n, -1)).astype(np.float32)
        return torch.from_numpy(values).reshape(tuple(shape))
