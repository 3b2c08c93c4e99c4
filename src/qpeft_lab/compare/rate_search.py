"""The learning rates of a method: the grid of the study, which extends itself while its best is at
an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_EXTENSIONS = 2  # the losses of earlier trials stay, so a search extends in one direction only

Edge = Literal["low", "high"]


@dataclass(frozen=True)
class RateSearch:
    """The learning rates to try, and the validation losses of the trials that ended."""

    rates: list[float]  # the grid and its extensions, sorted
    losses: dict[float, float]  # by learning rate, sorted; infinite where training diverged

    @property
    def best(self) -> float | None:
        """The learning rate with the lowest loss, the lowest of equal ones; None if no trial
        succeeded.
        """
        lowest = min(self.losses, key=lambda rate: self.losses[rate], default=None)
        return None if lowest is None or math.isinf(self.losses[lowest]) else lowest

    @property
    def chosen(self) -> float | None:
        """The learning rate to train with: the best, else the lowest; None where nothing is
        trained.
        """
        return self.best or next(iter(self.rates), None)

    @property
    def edge(self) -> Edge | None:
        """Where the best is the lowest or highest of the trials that ended; low if all of them
        diverged.
        """
        if len(self.losses) < 2:
            return None
        lowest, *_, highest = self.losses
        if self.best in (None, lowest):
            return "low"
        return "high" if self.best == highest else None


def search_rates(grid: Sequence[float], loss_of: Callable[[float], float | None]) -> RateSearch:
    """The search over `grid`, sorted, as far as `loss_of` a learning rate is known.

    It extends at an edge by the factor between the two rates of `grid` there, once all of its
    trials have ended.
    """
    rates = list(grid)
    while True:
        outcomes = {rate: loss_of(rate) for rate in rates}
        losses = {rate: loss for rate, loss in outcomes.items() if loss is not None}
        search = RateSearch(rates, losses)
        has_open_trials = len(losses) < len(rates)
        is_longest = len(rates) == len(grid) + MOST_EXTENSIONS
        if search.edge is None or has_open_trials or is_longest:
            return search
        below = rates[0] * grid[0] / grid[1]
        above = rates[-1] * grid[-1] / grid[-2]
        beyond = below if search.edge == "low" else above
        rounded = float(f"{beyond:.4g}")  # the rates of a grid differ in three digits
        rates = sorted([*rates, rounded])
