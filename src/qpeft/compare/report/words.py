"""What things are called on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpeft.compare.report.marks import Mark, mark
from qpeft.compare.resolved import ResolvedStudy

_METRICS = {"test_loss": "test loss", "test_accuracy": "test accuracy", "bleu": "BLEU"}
_UNITS = {"test_accuracy": "%", "bleu": "0 to 100"}
VERDICTS = {"better": "▲", "worse": "▼", "no difference shown": "≈", "preliminary": "…"}


def metric(study: ResolvedStudy) -> str:
    """`test loss`."""
    return _METRICS[study.metric]


def unit(study: ResolvedStudy) -> str:
    """Of the metric: `nats per token`."""
    if study.metric == "test_loss":
        return loss_unit(study)
    return _UNITS[study.metric]


def factor(study: ResolvedStudy) -> float:
    """From the metric as it is stored to the metric in its unit."""
    return 100.0 if study.metric == "test_accuracy" else 1.0


def loss_unit(study: ResolvedStudy) -> str:
    return "nats per token" if study.task == "causal-lm" else "nats per example"


def capital(text: str) -> str:
    """The first letter raised, the others as they are: BLEU stays BLEU."""
    return text[:1].upper() + text[1:]


def mark_of(method: Any, study: ResolvedStudy) -> Mark:
    """The mark of a `MethodSummary`."""
    return mark(method.method, method.role, method.key == study.reference)


def settings(values: Mapping[str, Any]) -> str:
    """`r=8, target_modules=c_attn`."""
    return ", ".join(f"{name}={_setting(value)}" for name, value in values.items())


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
