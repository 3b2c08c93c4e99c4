"""The kinds of methods, told apart in charts and tables by shape, never by colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpeft.compare.analysis.types import MethodSummary, Summary


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
