"""How a score is printed."""

from __future__ import annotations

from collections.abc import Mapping


def headline(score: Mapping[str, float]) -> tuple[str, str]:
    """The main metric and its value: the accuracy of a classification, otherwise the perplexity."""
    return ("accuracy", accuracy(score)) if "accuracy" in score else ("perplexity", perplexity(score))


def loss(score: Mapping[str, float]) -> str:
    """`0.6931 nats per token`, or per example."""
    return f"{score['loss']:.4f} nats per {'example' if 'accuracy' in score else 'token'}"


def accuracy(score: Mapping[str, float]) -> str:
    """`81.2% (78.4% to 83.7%)`, with its 95 % confidence interval."""
    return f"{score['accuracy']:.1%} ({score['accuracy_low']:.1%} to {score['accuracy_high']:.1%})"


def perplexity(score: Mapping[str, float]) -> str:
    """`44.61`; `inf-like` beyond a loss of 20, where the digits are meaningless."""
    from qpeft.training.metrics import HOPELESS_LOSS

    return f"{score['perplexity']:,.2f}" if score["loss"] <= HOPELESS_LOSS else "inf-like"
