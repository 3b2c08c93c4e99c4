"""QAA's branch of one linear map: from its input to the term added to its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpeft import circuits
from qpeft.core.generator import ANGLES, FullPrecision, ParameterGroup, fingerprint
from qpeft.methods.qaa.features import count_features
from qpeft.methods.qaa.settings import ANGLE_SCALE, QAASettings


class QAABranch(FullPrecision):
    """(alpha / n) (V f(x) + c), for the adapted outputs.

    V (written, features) and c (written,) are initialized to 0. All arithmetic is float32, or float64 in a model of
    float64, because squares of small amplitudes underflow in half precision.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "features": ANGLES,
        "V": ParameterGroup("V", decays=True),
        "c": ParameterGroup("offset"),
    }
    fingerprint: Tensor

    def __init__(
        self,
        settings: QAASettings,
        features: nn.Module | None,
        width: int,
        slices: list[list[int]],
        start_hash: str,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.width, self.slices, self.carry_norm = width, slices, settings.carry_norm
        self.scale = settings.alpha / circuits.amplitude_qubits(width)
        self.features = features
        written = sum(stop - start for start, stop in slices)
        n_features = count_features(settings, width)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.V = nn.Parameter(torch.zeros(written, n_features, **place)) if n_features else None
        self.c = nn.Parameter(torch.zeros(written, **place)) if settings.use_offset else None
        hashed = {f.name: getattr(settings, f.name) for f in fields(QAASettings) if f.name != "allow_large"}
        mark = fingerprint(ANGLE_SCALE, start_hash, width, slices, hashed)
        self.register_buffer("fingerprint", mark.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """The added term, (..., written), for an input x (..., width)."""
        with torch.autocast(x.device.type, enabled=False):
            if self.V is None:
                assert self.c is not None
                return (self.scale * self.c).expand(*x.shape[:-1], -1)
            return self.scale * F.linear(self.read(x), self.V, self.c)

    def read(self, x: Tensor) -> Tensor:
        """Features f(x), (..., features), in the branch's dtype."""
        assert self.features is not None
        assert self.V is not None
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.V.dtype)
            f = self.features(x)
            if not self.carry_norm:
                return f
            return f * (torch.linalg.vector_norm(x, dim=-1, keepdim=True) / self.width**0.5)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., outputs) plus the branch of x at the adapted outputs; the other values are unchanged."""
        added = self(x).to(y.dtype)
        if self.slices == [[0, y.shape[-1]]]:
            return y + added
        pieces, done = [], 0
        for (start, stop), part in zip(self.slices, added.split([b - a for a, b in self.slices], -1), strict=True):
            pieces += [y[..., done:start], y[..., start:stop] + part]
            done = stop
        return torch.cat([*pieces, y[..., done:]], -1)
