"""How values and kinds of methods are shown: a value has the same few digits, and a kind the same sign, everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpeft.compare.analysis.statistics import Difference, Stats
    from qpeft.compare.analysis.types import MethodSummary, Reached, Summary
    from qpeft.compare.metrics import Metric

MISSING = "\u2013"
VERDICTS = {"better": "▲", "worse": "▼", "no difference shown": "≈", "preliminary": "…"}
_DECIMALS = 4
_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Kind:
    """A kind of method. `key` is also its CSS class."""

    key: str
    title: str
    sign: str
    marker: str  # matplotlib's name of the sign
    line: str  # matplotlib's name of a line style


REFERENCE = Kind("reference", "reference", "◆", "D", "-")
QUANTUM = Kind("quantum", "quantum-generated", "●", "o", "-")
CLASSICAL = Kind("classical", "classical", "■", "s", "--")
CONTROL = Kind("control", "control", "▲", "^", ":")
BASE = Kind("base", "untrained", "✕", "X", "-.")
KINDS = (REFERENCE, QUANTUM, CLASSICAL, CONTROL, BASE)


def kind_of(method: MethodSummary, summary: Summary) -> Kind:
    """The kind of `method` in its study."""
    if method.key == summary.study.reference:
        return REFERENCE
    if method.role == "control":
        return CONTROL
    if not method.is_trained:
        return BASE
    return QUANTUM if method.kind == QUANTUM.key else CLASSICAL


def count(value: float | None) -> str:
    """`294,912`."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal(value: float | None, decimals: int = _DECIMALS, unit: float = 1.0, sign: str = "") -> str:
    """`3.0512`: the value divided by `unit`."""
    return MISSING if value is None else f"{value / unit:{sign},.{decimals}f}"


def metric_title(metric: Metric) -> str:
    """`Test loss (nats per token)`."""
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def mean_sd(stats: Stats | None, decimals: int = _DECIMALS, factor: float = 1.0) -> str:
    """`3.0512 ± 0.0041`; the mean alone for one seed."""
    if stats is None:
        return MISSING
    spread = "" if stats.sd is None else f" ± {factor * stats.sd:.{decimals}f}"
    return f"{factor * stats.mean:,.{decimals}f}{spread}"


def interval(found: Difference | None, factor: float = 1.0) -> str:
    """`-0.0612 [-0.1032, -0.0192]`, with more decimals for a narrow interval, to show two digits of it."""
    if found is None:
        return MISSING
    if found.low is None or found.high is None:
        return f"{factor * found.mean:+.{_DECIMALS}f}"
    width = factor * (found.high - found.low)
    digits = 1 - math.floor(math.log10(width)) if width > 0 else _DECIMALS
    decimals = min(_MOST_DECIMALS, max(_DECIMALS, digits))
    mean, low, high = (f"{factor * value:+.{decimals}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def verdict(found: Difference | None) -> str:
    """`▲ better`."""
    return "" if found is None else f"{VERDICTS[found.verdict]} {found.verdict}"


def reached(found: Reached | None, decimals: int = 0) -> str:
    """`40`; `40 (4/5)` if one of five seeds did not reach the target, `> 150 (2/5)` if most, `> 150` if all."""
    if found is None:
        return MISSING
    text = f"> {decimal(found.limit, decimals)}" if found.median is None else decimal(found.median, decimals)
    n = len(found.values)
    return f"{text} ({found.n_reached}/{n})" if 0 < found.n_reached < n else text


def settings(values: Mapping[str, Any]) -> str:
    """`r=8, target_modules=q_proj+v_proj`."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "+".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())
