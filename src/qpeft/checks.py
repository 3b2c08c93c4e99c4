"""What settings may be."""

from __future__ import annotations

import math


def is_count(value: object) -> bool:
    """A whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: object) -> bool:
    """A finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
