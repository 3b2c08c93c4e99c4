"""Times of qpeft and of other programs, measured in turn, and their ratios as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, process_time

from torch import Tensor

Results = tuple[Tensor, ...]
Task = Callable[[], Results]
HEADINGS = ("what", "qpeft", "other", "speed against other (quartiles)")


@dataclass(frozen=True)
class Row:
    """The cost of qpeft and of another program; `ratio` is the other over qpeft, with its
    quartiles.

    Seconds or bytes are medians, the ratio is the median of the rounds' ratios. `note` explains a
    missing ratio.
    """

    what: str
    other: str
    unit: str = "s"
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    note: str = ""
    refused: bool = False

    @staticmethod
    def of_samples(what: str, other: str, ours: list[float], theirs: list[float]) -> Row:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        found = {
            "ours": median(ours),
            "theirs": median(theirs),
            "ratio": median(ratios),
            "quartiles": (low, high),
        }
        return Row(what, other, **found, rounds=len(ratios))


def turns(
    tasks: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each task in each round by `clock`; every round runs every task once.

    Other load on the machine affects all tasks equally. Each timed call follows an untimed one of
    the same task, which fills the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return seconds


def measure(
    what: str, ours: Task, others: Mapping[str, Callable[[], Task]], tolerance: float, rounds: int
) -> Iterator[Row]:
    """Rows in processor seconds; a program that disagrees gets a row without a time.

    `others` make what is timed. `tolerance` is that of their results, relative to the largest
    entry.
    """
    tasks: dict[str, Task] = {"qpeft": ours}
    for name, make in others.items():
        task = make()
        if wrong := _differs(task(), ours(), tolerance):
            yield Row(what, name, note=f"refused: {wrong}", refused=True)
        else:
            tasks[name] = task
    seconds = turns(tasks, rounds, process_time)
    for name in list(tasks)[1:]:
        yield Row.of_samples(what, name, seconds["qpeft"], seconds[name])


def _differs(found: Results, expected: Results, tolerance: float) -> str:
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.shape != ours.shape:
            return f"shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
        error = ((theirs - ours).abs().max() / ours.abs().max()).item()
        if not error <= tolerance:
            return f"differs by {error:.1e} of the largest entry; {tolerance:.0e} is allowed"
    return ""


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEADINGS, ("---", "---:", "---", "---"), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.ratio is None:
        return row.what, "", row.other, row.note
    quartiles = f" ({' to '.join(map(_ratio, row.quartiles))})" if row.quartiles else ""
    return (
        row.what,
        _amount(row.ours, row.unit),
        f"{row.other}, {_amount(row.theirs, row.unit)}",
        _ratio(row.ratio) + quartiles,
    )


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"
