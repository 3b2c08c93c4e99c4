"""The option of the feed-forward adapter, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option


@dataclass(kw_only=True)
class BottleneckSettings:
    """The size of the feed-forward adapter."""

    bottleneck_size: int = option(64, "Inner width b of the adapter.", at_least=1, at_most=2**16)
