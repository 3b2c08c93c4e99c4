"""How a score is printed."""

from __future__ import annotations

from collections.abc import Mapping

_HOPELESS_LOSS = 20.0


def perplexity(score: Mapping[str, float]) -> str:
    """`44.61`; beyond a loss of 20 its digits mean nothing, so `inf-like`."""
    return f"{score['perplexity']:,.2f}" if score["loss"] <= _HOPELESS_LOSS else "inf-like"
