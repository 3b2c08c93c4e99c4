"""The parts of the report that have a right answer: numbers in words, places of labels, the front of the best."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.compare.report import numbers
from qpeft.compare.report.forest import Line, limits
from qpeft.compare.report.labels import Box, apart, beside
from qpeft.compare.report.marks import MARKS, mark
from qpeft.compare.report.pareto import Point, beyond, draw, front
from qpeft.compare.report.tables import Cell, Column, Table
from qpeft.compare.report.trajectories import Path, above, ceiling, of_seconds, of_steps
from qpeft.compare.report.window import fences

REFERENCE = mark("lora", "main", True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (numbers.count(294_912), "294,912"),
        (numbers.count(None), "\u2013"),
        (numbers.short(294_912), "295k"),
        (numbers.short(0), "0"),
        (numbers.spread(3.051234, 0.00412), "3.0512 ± 0.0041"),
        (numbers.spread(99.4843, 1.2), "99.5 ± 1.2"),
        (numbers.spread(1234.5, 120.0), "1,234 ± 120"),
        (numbers.spread(4.6, 0.0), "4.600 ± 0"),
        (numbers.spread(4.6, None), "4.600"),
        (numbers.spread(0.9999, 0.00002, 4), "0.9999 ± <0.0001"),
        (numbers.spread(4.6, 0.0, 2), "4.60 ± 0"),
        (numbers.number(-0.5, 2), "-0.50"),
        (numbers.number(200.0), "200"),
        (numbers.signed(-0.0004, 2), "-0.00"),
        (numbers.signed(0.0, 2), "0.00"),
        (numbers.interval(0.0004, 0.0002, 0.0006, 2), "+0.0004 [+0.0002, +0.0006]"),
        (numbers.signed(0.061, 3), "+0.061"),
        (numbers.interval(-0.0612, -0.1032, -0.0192), "-0.061 [-0.103, -0.019]"),
        (numbers.interval(0.05, None, None), "+0.05000"),
        (numbers.size(0), "0 B"),
        (numbers.size(1_234_567), "1.23 MB"),
        (numbers.rate(0.0003), "3e-4"),
        (numbers.rate(0.00035), "3.5e-4"),
        (numbers.rate(0.0015), "0.0015"),
        (numbers.rate(0.1), "0.1"),
        (numbers.rate(1.0), "1"),
    ],
)
def test_numbers_read_well(found, expected):
    assert found.replace("\u2212", "-") == expected


def test_numbers_beneath_each_other_have_equally_many_decimals():
    assert numbers.shared_places([0.018, 0.0062, 0.0036, None, 0.0, 0.0047]) == 4
    assert numbers.shared_places([None, 0.0]) is None


points = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 20)).map(
        lambda at: Point("name", REFERENCE, float(at[0]), float(at[1]), ())
    ),
    min_size=1,
    max_size=12,
)


@given(points, st.booleans())
def test_the_front_is_what_nothing_beats(found, lower_is_better):
    def beats(one: Point, other: Point) -> bool:
        good = one.y <= other.y if lower_is_better else one.y >= other.y
        return one.x <= other.x and good and (one.x, one.y) != (other.x, other.y)

    best = {(point.x, point.y) for point in found if not any(beats(other, point) for other in found)}
    kept = front(found, lower_is_better)
    assert {(point.x, point.y) for point in kept} == best
    assert [point.x for point in kept] == sorted({point.x for point in kept})


@given(st.lists(st.tuples(st.integers(40, 300), st.integers(40, 300)), min_size=1, max_size=8, unique=True))
def test_labels_of_a_few_points_lie_apart_and_inside(where):
    bounds, size, text = Box(0, 0, 340, 340), 10.0, "name"
    places = beside([(float(x), float(y)) for x, y in where], [text] * len(where), bounds, size)
    wide = 0.58 * size * len(text)
    boxes = []
    for place in places:
        left = place.x - {"left": 0, "center": wide / 2, "right": wide}[place.align]
        boxes.append(Box(left, place.y - 5.75, left + wide, place.y + 5.75))
    assert all(box.left >= 0 and box.right <= 340 and box.bottom >= 0 and box.top <= 340 for box in boxes)
    assert all(one.overlap(other) < 1e-9 for one, other in combinations(boxes, 2))


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_heights_are_moved_apart_in_order(heights):
    moved = apart(heights, 12, 0, 200)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    assert all(moved[b] - moved[a] >= 12 - 1e-9 for a, b in pairwise(order))
    assert min(moved) >= -1e-9
    assert max(moved) <= 200 + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=10), st.floats(0.001, 0.5))
def test_zero_is_always_in_the_forest(means, half):
    lines = [Line("name", REFERENCE, mean, mean - half, mean + half, (mean,), True) for mean in means]
    low, high = limits(lines)
    assert low < 0 < high


def test_one_outlier_does_not_flatten_the_forest():
    near = [Line("near", REFERENCE, 0.01 * i, 0.01 * i - 0.01, 0.01 * i + 0.01, (), True) for i in range(5)]
    far = Line("far", REFERENCE, 9.0, 8.0, 10.0, (), True)
    assert limits([*near, far])[1] < 0.5


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_fences_leave_the_middle_half_inside(values):
    low, high = fences(values)
    assert sum(low <= value <= high for value in values) >= len(values) / 2
    assert sum(value < low for value in values) <= len(values) / 4
    assert sum(value > high for value in values) <= len(values) / 4


def point(name: str, y: float, seeds: tuple[float, ...] = ()) -> Point:
    return Point(name, REFERENCE, 10.0 + y, y, seeds or (y,), minor=name.endswith("@budget"))


def test_a_chart_of_quality_says_what_lies_beyond_it_and_never_cuts_the_best():
    near = [point(f"near{i}@budget", 3.0 + 0.05 * i) for i in range(6)]
    said = beyond([*near, point("far", 9.25), point("best", 1.25), point("wild", 3.1, (3.0, 7.5))], True)
    assert said.startswith("Beyond the chart, at the arrows: far 9.250, a seed of wild 7.500.")
    assert "best" not in said
    assert "best 1.250" in beyond([*near, point("best", 1.25), point("far", 9.25)], False), "the worst by accuracy"
    assert beyond(near, True) == ""
    svg = draw([*near, point("far", 9.25)], "name", "x", "y", True)
    assert ">far: 9.25</text>" in svg
    assert all(f">{text}</text>" in svg for text in ("1", "near0@budget", "6", "near5@budget"))


def path(name: str, *means: float) -> Path:
    return Path(name, REFERENCE, tuple(map(float, range(len(means)))), tuple((mean,) for mean in means))


def test_a_chart_of_losses_reaches_to_the_usual_start_and_says_what_is_above():
    usual = [path(f"usual{i}", 4.0, 3.2 - 0.1 * i, 3.0 - 0.1 * i) for i in range(5)]
    late, far = path("late", 4.5, 3.0, 2.9), path("far", 9.5, 6.0, 5.5)
    top = ceiling([*usual, late, far])
    assert top == 4.0
    assert above([*usual, late, far], top) == (
        "Above the chart, at the arrows: late at its start, 4.500; far from 9.500 to 5.500."
    )
    assert ceiling([item.since(1.0) for item in usual], start=False) == pytest.approx(3.2)
    assert above(usual, ceiling(usual)) == ""


def test_marks_differ_in_shape_and_sign_not_in_colour_alone():
    assert len({found.shape for found in MARKS}) == len({found.sign for found in MARKS}) == len(MARKS)
    assert mark("qpa", "control", False).kind == "control"
    assert mark("qpa", "equal_budget", False).kind == "quantum"
    assert mark("qpa", "main", True).kind == "reference"
    assert mark("none", "main", False).kind == "base"
    assert mark("dora", "main", False).kind == "classical"


def test_a_path_takes_the_evaluations_that_all_seeds_have():
    one = [[0, None, 4.0, 0.0], [5, 3.9, None, 1.0], [10, 3.5, 3.0, 2.0], [20, 3.0, 2.0, 4.0]]
    two = [[0, None, 4.0, 0.0], [10, 3.5, 3.5, 4.0]]
    lost = [[0, None, 4.0, 0.0], [10, 3.5, math.inf, 1.0]]
    path = of_steps("name", REFERENCE, [one, two], [lost], per_step=8)
    assert path is not None
    assert (path.x, path.seeds, path.mean, path.lost) == ((0, 80), ((4.0, 4.0), (3.0, 3.5)), [4.0, 3.25], ((0, 4.0),))
    timed = of_seconds("name", REFERENCE, [one, two])
    assert timed is not None
    assert timed.x == (0.0, 3.0)
    assert of_steps("name", REFERENCE, [], [lost]) is None


def test_columns_that_say_nothing_are_left_out():
    cells = {"a": [Cell(""), Cell("")], "b": [Cell(""), Cell(numbers.MISSING)], "c": [Cell("1"), Cell("")]}
    table = Table("t", "", [Column(title, found) for title, found in cells.items()])
    assert [column.title for column in table.columns] == ["a", "c"]
    assert [[cell.text for cell in row] for row in table.rows] == [["", "1"], ["", ""]]
