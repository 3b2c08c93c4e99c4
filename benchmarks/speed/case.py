"""One thing that several programs can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Results = tuple[Tensor, ...]
Task = Callable[[], Results]


@dataclass(frozen=True)
class Peer:
    """How another program does it: `make` gives what is timed, and raises ImportError where it is not installed.

    `same`: its results must be qpeft's; False for what stands beside only to compare the cost.
    """

    make: Callable[[], Task]
    same: bool = True


@dataclass(frozen=True)
class Case:
    """What qpeft does, the peers by name, and how far their results may differ, relative to the largest entry.

    `compared` picks from a result what must agree; `moved` counts the bytes that must be read and written at least.
    """

    what: str
    ours: Task
    peers: dict[str, Peer]
    tolerance: float
    rounds: int = 15
    moved: int = 0
    compared: Callable[[Results], Results] = field(default=lambda results: results)
