"""What a method is, as shape and colour: the same in every chart and table, told apart without colour too."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft import methods
from qpeft.compare.report.canvas import CLASSICAL, CONTROL, INK, QUANTUM
from qpeft.compare.study import UNTRAINED


@dataclass(frozen=True)
class Mark:
    """One kind of method."""

    kind: str  # also the CSS class
    word: str
    shape: str  # matplotlib's
    sign: str  # the same shape in text
    colour: str


REFERENCE = Mark("reference", "reference", "D", "◆", INK)
MARKS = (
    REFERENCE,
    Mark("quantum", "quantum-generated", "o", "●", QUANTUM),
    Mark("classical", "classical", "s", "■", CLASSICAL),
    Mark("control", "control", "^", "▲", CONTROL),
    Mark("base", "untrained", "X", "✕", INK),
)
_BY_KIND = {mark.kind: mark for mark in MARKS}


def mark(method: str, role: str, is_reference: bool) -> Mark:
    """The mark of a method of this kind of adapter (`qpa`, `lora`, ...) in this role."""
    if is_reference:
        return REFERENCE
    if role == "control":
        return _BY_KIND["control"]
    if method == UNTRAINED:
        return _BY_KIND["base"]
    found = methods.find(method)
    return _BY_KIND["classical" if found is None else found.kind]
