"""What a diagnosis consists of: questions, each with measurements, the values to read first, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

QUESTIONS = {
    "random": "Is the circuit random?",
    "redundant": "Is it redundant?",
    "gradients": "Do gradients vanish?",
    "expressive": "Which states does it reach, and how entangled are they?",
    "moved": "Did the angles move?",
    "rank": "How many directions does it generate?",
    "matters": "Does the circuit matter?",
}


@dataclass(frozen=True)
class Measurement:
    """Values measured on a circuit or an adapter, and one sentence on what they mean."""

    @property
    def sentence(self) -> str:
        """What the values mean for the user."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values that `json.dumps` takes."""
        return asdict(self)


def floats(values: Any) -> tuple[float, ...]:
    """An array's elements as plain floats."""
    return tuple(float(value) for value in values)


class Value(NamedTuple):
    """A value as it is shown, next to its reference."""

    name: str
    found: str
    reference: str = ""


@dataclass(frozen=True)
class Finding:
    """The answer to one question. `left_out` lists what could not be measured, and why."""

    key: str  # of QUESTIONS
    figures: Mapping[str, Measurement] = field(default_factory=dict)  # by subject: "start", "trained", ...
    measures: tuple[Value, ...] = ()
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
    """The answers to all questions about one adapter or config, in the order of `QUESTIONS`."""

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
