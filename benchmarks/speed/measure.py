"""A case of the speed table: do the programs agree, and how long do they take?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import process_time

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from speed.machine import Machine, turns

Results = tuple[Tensor, ...]
Task = Callable[[], Results]


class WrongResultError(AssertionError):
    """The result of a program differs from qpeft's."""


@dataclass(frozen=True)
class Peer:
    """Another program: `make` gives what is timed, and raises ImportError if the program is not installed.

    `same`: its results must equal qpeft's; False for a reference of the cost.
    """

    make: Callable[[], Task]
    same: bool = True


@dataclass(frozen=True)
class Case:
    """The function of qpeft, the peers by name, and the tolerance of their results relative to the largest entry.

    `compared` selects what must agree in a result; `moved` is the number of bytes that must be read and written.
    """

    what: str
    ours: Task
    peers: dict[str, Peer]
    tolerance: float
    rounds: int = 15
    moved: int = 0
    compared: Callable[[Results], Results] = field(default=lambda results: results)


@dataclass(frozen=True)
class Row:
    """The cost of qpeft and of another program; `ratio` is the other over qpeft, with its quartiles.

    Seconds or bytes are medians, the ratio is the median of the rounds' ratios. `note` explains a missing ratio.
    """

    what: str
    other: str
    unit: str = "s"
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    of_roofline: float | None = None
    note: str = ""
    refused: bool = False

    @staticmethod
    def of_samples(
        what: str, other: str, ours: list[float], theirs: list[float], of_roofline: float | None = None, note: str = ""
    ) -> Row:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        found = {"ours": median(ours), "theirs": median(theirs), "ratio": median(ratios), "quartiles": (low, high)}
        return Row(what, other, **found, rounds=len(ratios), of_roofline=of_roofline, note=note)


def measure(case: Case, machine: Machine) -> Iterator[Row]:
    """Rows in processor seconds; a program that is missing or disagrees gets a row without a time."""
    tasks: dict[str, Task] = {"qpeft": case.ours}
    notes, expected = {}, case.ours()
    for name, peer in case.peers.items():
        try:
            tasks[name], notes[name] = _checked(case, peer, expected)
        except ImportError as error:
            yield Row(case.what, name, note=f"not installed: {error}")
        except WrongResultError as error:
            yield Row(case.what, name, note=f"refused: {error}", refused=True)
    seconds = turns(tasks, case.rounds, process_time)
    ours = seconds.pop("qpeft")
    with FlopCounterMode(display=False) as counter:
        case.ours()
    # the products of qpeft at the speed of torch.mm, or the necessary bytes at the speed of a copy
    least = max(counter.get_total_flops() / machine.flops(expected[0].dtype), case.moved / machine.copy)
    for name, theirs in seconds.items():
        yield Row.of_samples(case.what, name, ours, theirs, least / median(ours) if least else None, notes[name])


def _checked(case: Case, peer: Peer, expected: Results) -> tuple[Task, str]:
    task = peer.make()
    start = process_time()
    found = task()
    first = process_time() - start
    if peer.same:
        _compare(case.compared(found), case.compared(expected), case.tolerance)
    return task, f"first call {first:.0f} s" if first > 1 else ""


def _compare(found: Results, expected: Results, tolerance: float) -> None:
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.shape != ours.shape:
            raise WrongResultError(f"shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        error = ((theirs - ours).abs().max() / ours.abs().max()).item()
        if not error <= tolerance:
            raise WrongResultError(f"differs by {error:.1e} of the largest entry; {tolerance:.0e} is allowed")
