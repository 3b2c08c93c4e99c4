"""A case's rows: first whether the programs agree, then their time."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import process_time

import torch
from torch.utils.flop_counter import FlopCounterMode

from interleave import turns
from speed.case import Case, Peer, Results, Task
from speed.machine import Machine
from speed.row import Row


class WrongResultError(AssertionError):
    """A program computed something else than qpeft."""


def measure(case: Case, machine: Machine) -> Iterator[Row]:
    """Rows in processor seconds, all programs in turns; one that is missing or disagrees gets a row without a time."""
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
    share = _share(case, machine, expected[0].dtype, median(ours))
    for name, theirs in seconds.items():
        yield Row.of_samples(case.what, name, ours, theirs, of_roofline=share, note=notes[name])


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


def _share(case: Case, machine: Machine, dtype: torch.dtype, seconds: float) -> float | None:
    """The least time for the matrix products that qpeft makes and for the bytes that must move, over the time taken."""
    with FlopCounterMode(display=False) as counter:
        case.ours()
    least = max(counter.get_total_flops() / machine.flops(dtype), case.moved / machine.copy)
    return least / seconds if least else None
