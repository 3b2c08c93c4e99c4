"""What a diagnosis consists of: questions, each with figures, the numbers to read first, and plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qpeft.diagnostics.figure import Figure

QUESTIONS = {
    "random": "Is the circuit random?",
    "redundant": "Is it redundant?",
    "gradients": "Do gradients vanish?",
    "expressive": "Which states does it reach, and how entangled are they?",
    "moved": "Did the angles move?",
    "rank": "How many directions does it generate?",
    "matters": "Does the circuit matter?",
}


class Measure(NamedTuple):
    """A number as it is shown, and what it is to be held against."""

    name: str
    found: str
    reference: str = ""


@dataclass(frozen=True)
class Finding:
    """The answer to one question. `left_out` says what could not be answered, and why."""

    key: str  # of QUESTIONS
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by what they are of: "start", "trained", ...
    measures: tuple[Measure, ...] = ()
    sentences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        return QUESTIONS[self.key]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "key": self.key,
            "question": self.question,
            "sentences": list(self.sentences),
            "left_out": list(self.left_out),
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }


@dataclass(frozen=True)
class Diagnosis:
    """All questions about one adapter or config, in the order in which a reader has them."""

    name: str
    facts: tuple[tuple[str, str], ...]  # what it is: method, qubits, layers, ...
    findings: tuple[Finding, ...]
    summary: str

    def __getitem__(self, key: str) -> Finding:
        found = {finding.key: finding for finding in self.findings}
        return found[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.name,
            "facts": dict(self.facts),
            "summary": self.summary,
            "findings": [finding.to_dict() for finding in self.findings],
        }
