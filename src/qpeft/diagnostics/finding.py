"""What a diagnosis consists of: questions, each with measurements, the values to read first, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


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
    """A value as it is shown, and its reference."""

    name: str
    found: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer to one question. `left_out` lists what could not be measured, and why."""

    key: str = ""
    question: str = ""
    measurements: Mapping[str, Any] = field(default_factory=dict)  # by subject: "start", "trained", ...
    values: tuple[Value, ...] = ()
    sentences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def figures(self) -> Mapping[str, Any]:
        """The name of `measurements` in qpeft 0.1."""
        return self.measurements

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "key": self.key,
            "question": self.question,
            "sentences": list(self.sentences),
            "left_out": list(self.left_out),
            "figures": {name: measurement.to_dict() for name, measurement in self.measurements.items()},
        }


@dataclass(frozen=True)
class Diagnosis:
    """The answers to all questions about one adapter or config."""

    name: str
    facts: tuple[tuple[str, str], ...]  # what it is: method, qubits, layers, ...
    findings: tuple[Finding, ...]

    def __getitem__(self, key: str) -> Finding:
        found = {finding.key: finding for finding in self.findings}
        return found[key]

    @property
    def summary(self) -> str:
        """One paragraph: the first sentence on each question that has an answer."""
        return " ".join(finding.sentences[0] for finding in self.findings if finding.sentences)

    @property
    def training_runs(self) -> Any:
        """The CircuitMatters of the question whether the circuit matters; None without training runs."""
        return self["matters"].measurements.get("trainings")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.name,
            "facts": dict(self.facts),
            "summary": self.summary,
            "findings": [finding.to_dict() for finding in self.findings],
        }
