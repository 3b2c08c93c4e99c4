"""Names beside points, none over another: what makes a legend unnecessary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LETTER, _LINE = 0.58, 1.15  # of the font's size; an average letter of a sans-serif font, and a line
_RINGS = (8, 13, 19, 27, 37, 50, 66, 86)
_ANGLES = (0, 180, 35, -35, 145, -145, 65, -65, 115, -115, 90, -90)


class Box(NamedTuple):
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)


class Place(NamedTuple):
    """Where a label goes: its anchor, which side of it the text lies, and whether a line must lead there."""

    x: float
    y: float
    align: str  # "left" | "right" | "center"
    leader: bool


def beside(points: Sequence[tuple[float, float]], texts: Sequence[str], bounds: Box, size: float) -> list[Place]:
    """A place for every text near its point, inside `bounds`; from near to far, the first that is free.

    A place without a line to it is free only if no other point is nearer. Where none is free the least crowded is
    taken. Equal input gives equal places.
    """
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places: dict[int, Place] = {}
    for index in sorted(range(len(points)), key=lambda item: (-points[item][1], points[item][0])):
        candidates = _candidates(*points[index], texts[index], size)
        others = [point for point in points if point != points[index]]
        place, box = min(candidates, key=lambda found: _crowding(*found, points[index], others, taken, bounds))
        taken.append(box)
        places[index] = place
    return [places[index] for index in range(len(points))]


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """`heights` moved as little as a single sweep can, at least `gap` apart, within [low, high] if there is room."""
    order = sorted(range(len(heights)), key=lambda item: heights[item])
    moved = [0.0] * len(heights)
    floor = low
    for rank, index in enumerate(order):
        ceiling = high - gap * (len(order) - 1 - rank)
        moved[index] = max(floor, min(heights[index], ceiling))
        floor = moved[index] + gap
    return moved


def _candidates(x: float, y: float, text: str, size: float) -> list[tuple[Place, Box]]:
    wide, high = _LETTER * size * len(text), _LINE * size
    found = []
    for ring in _RINGS:
        for angle in _ANGLES:
            dx, dy = ring * math.cos(math.radians(angle)), ring * math.sin(math.radians(angle))
            align = "center" if abs(angle) in (90,) else "left" if abs(angle) < 90 else "right"
            left = x + dx - {"left": 0, "center": wide / 2, "right": wide}[align]
            box = Box(left, y + dy - high / 2, left + wide, y + dy + high / 2)
            found.append((Place(x + dx, y + dy, align, ring > 15), box))
    return found


def _crowding(
    place: Place,
    box: Box,
    point: tuple[float, float],
    others: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
) -> float:
    area = (box.right - box.left) * (box.top - box.bottom)
    own = math.dist(place[:2], point)
    is_misleading = not place.leader and any(math.dist(place[:2], other) < own for other in others)
    return sum(box.overlap(other) for other in taken) + 3 * (area - box.overlap(bounds)) + is_misleading * area / 2
