"""Fair timing of several callables on a busy machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter


def interleave(
    tasks: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = perf_counter
) -> dict[str, float]:
    """Median seconds of each task over `repetitions` rounds by `clock`."""
    return {name: median(samples) for name, samples in turns(tasks, repetitions, clock).items()}


def turns(
    tasks: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = perf_counter
) -> dict[str, list[float]]:
    """Seconds of each task in each round by `clock`; every round runs every task once.

    Taking turns spreads the machine's other work evenly. Each timed call follows an untimed one of the same
    task, so that no task pays for the caches which the one before it has filled.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repetitions):
        for name, task in tasks.items():
            task()
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return seconds
