"""How a method's name, a count, a mean, a difference become cells of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpeft.studies.comparison.report import numbers, words
from qpeft.studies.comparison.report.tables import Cell

if TYPE_CHECKING:
    from qpeft.studies.comparison.findings import MethodSummary, Reached, Summary
    from qpeft.studies.comparison.statistics import Difference, Stats


def name(method: MethodSummary, summary: Summary) -> Cell:
    """The cell that names a row."""
    return Cell(method.key, method.key, words.mark_of(method, summary.study), "indent" if method.against else "")


def amount(value: float | None) -> Cell:
    return Cell(numbers.count(value), value)


def rank(value: int | None) -> Cell:
    return Cell(numbers.count(value), value)


def stats(value: Stats | None, factor: float = 1.0) -> Cell:
    if value is None:
        return Cell(numbers.MISSING)
    sd = None if value.sd is None else factor * value.sd
    return Cell(numbers.spread(factor * value.mean, sd), value.mean)


def difference(found: Difference | None, factor: float) -> list[Cell]:
    """The interval and the verdict."""
    if found is None:
        return [Cell(numbers.MISSING), Cell("")]
    low, high = (None if bound is None else factor * bound for bound in (found.low, found.high))
    text = numbers.interval(factor * found.mean, low, high)
    word = f"{words.VERDICTS[found.verdict]} {found.verdict}"
    return [Cell(text, found.mean), Cell(word, found.verdict, kind="verdict " + found.verdict.split()[0])]


def reached(found: Reached | None) -> Cell:
    """`40`, or `> 150 (3/5)` where two seeds of five never got there."""
    if found is None:
        return Cell(numbers.MISSING)
    if found.mean is not None:
        return Cell(numbers.count(found.mean), found.mean)
    hits = sum(value is not None for value in found.values.values())
    return Cell(f"> {numbers.count(found.limit)}" + (f" ({hits}/{len(found.values)})" if hits else ""), found.limit + 1)
