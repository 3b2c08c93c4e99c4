"""How a score is printed."""

from __future__ import annotations

from collections.abc import Mapping


def headline(score: Mapping[str, float]) -> tuple[str, str]:
    """The name of the figure that matters, and the figure: an accuracy or a perplexity."""
    return ("accuracy", accuracy(score)) if "accuracy" in score else ("perplexity", perplexity(score))


def loss(score: Mapping[str, float]) -> str:
    """`0.6931 nats a token`, or an example."""
    return f"{score['loss']:.4f} nats {'an example' if 'accuracy' in score else 'a token'}"


def accuracy(score: Mapping[str, float]) -> str:
    """`81.2% (78.4% to 83.7%)`, with its 95 % interval."""
    return f"{score['accuracy']:.1%} ({score['accuracy_low']:.1%} to {score['accuracy_high']:.1%})"


def perplexity(score: Mapping[str, float]) -> str:
    """`44.61`; beyond a loss of 20 its digits mean nothing, so `inf-like`."""
    from qpeft.training.metrics import HOPELESS_LOSS

    return f"{score['perplexity']:,.2f}" if score["loss"] <= HOPELESS_LOSS else "inf-like"
