"""Methods, counts, means, differences as the cells of a column; the numbers of a column have equally many decimals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from qpeft.compare.report import numbers, words
from qpeft.compare.report.tables import Cell

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import MethodSummary, Reached, Summary
    from qpeft.compare.analysis.statistics import Difference, Stats

_NOTHING = Cell(numbers.MISSING)
_ROUNDING = 1e-4  # of the mean


def names(methods: Iterable[MethodSummary], summary: Summary) -> list[Cell]:
    """The keys with their marks, controls indented."""
    study = summary.study
    return [Cell(m.key, m.key, words.mark_of(m, study), "indent" if m.against else "") for m in methods]


def texts(values: Iterable[str]) -> list[Cell]:
    return [Cell(value, value) for value in values]


def written(values: Iterable[float | None], write: Callable[[float], str]) -> list[Cell]:
    """Numbers as `write` puts them."""
    return [_NOTHING if value is None else Cell(write(value), value) for value in values]


def counts(values: Iterable[float | None]) -> list[Cell]:
    return written(values, numbers.count)


def means(found: Sequence[Stats | None], factor: float = 1.0) -> list[Cell]:
    """`3.0512 ± 0.0041`: as many decimals as most need to show two digits of a spread that is not mere rounding."""
    spreads = [factor * s.sd for s in found if s is not None and s.sd and s.sd > _ROUNDING * abs(s.mean)]
    decimals = numbers.shared_places(spreads)
    return [
        _NOTHING if s is None else Cell(numbers.spread(factor * s.mean, s.sd and factor * s.sd, decimals), s.mean)
        for s in found
    ]


def intervals(found: Sequence[Difference | None], factor: float) -> list[Cell]:
    """`−0.061 [−0.103, −0.019]`, likewise."""
    bounds = [(d.low, d.high) for d in found if d is not None]
    decimals = numbers.shared_places(numbers.half_width(low, high, factor) for low, high in bounds)

    def cell(d: Difference) -> Cell:
        low, high = (None if bound is None else factor * bound for bound in (d.low, d.high))
        return Cell(numbers.interval(factor * d.mean, low, high, decimals), d.mean)

    return [_NOTHING if d is None else cell(d) for d in found]


def verdicts(found: Iterable[Difference | None]) -> list[Cell]:
    """The word with its sign."""
    return [
        Cell("")
        if d is None
        else Cell(f"{words.VERDICTS[d.verdict]} {d.verdict}", d.verdict, kind=f"verdict {d.verdict.split()[0]}")
        for d in found
    ]


def arrivals(found: Iterable[Reached | None]) -> list[Cell]:
    """`40`, or `> 150 (3/5)` where two seeds of five never got there."""
    return [_NOTHING if hit is None else _arrival(hit) for hit in found]


def _arrival(found: Reached) -> Cell:
    if found.mean is not None:
        return Cell(numbers.count(found.mean), found.mean)
    hits = sum(value is not None for value in found.values.values())
    return Cell(f"> {numbers.count(found.limit)}" + (f" ({hits}/{len(found.values)})" if hits else ""), found.limit + 1)
