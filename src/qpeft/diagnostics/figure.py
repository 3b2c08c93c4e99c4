"""What the figures of a circuit have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """Numbers about a circuit, and one plain sentence on what they mean."""

    @property
    def sentence(self) -> str:
        """What the figure means for the user."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values that `json.dumps` takes."""
        return asdict(self)


def numbers(values: Any) -> tuple[float, ...]:
    """An array's numbers as plain floats."""
    return tuple(float(value) for value in values)
