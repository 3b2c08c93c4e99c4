"""The evidence of `qpeft.suggest`, `evidence.json`: what each family of adapters reached.

It is that of the equal search of evidence/PROTOCOL.md: for each family of adapters at each budget
the configuration that was best in the search, and test losses in the same setups (a base and a
text). `evidence/suggest_evidence.py` makes it from the rows. Of bases above 50 million parameters it
has stages 1 and 2 of evidence/smollm2/PROTOCOL.md, at 500 and at 10,000 parameters, at the learning
rates that are suggested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, Literal, NamedTuple

from torch import nn

from qpeft.core.targets import last_norm, norm_targets

LARGE = 50_000_000  # parameters of a base above which results on such bases count first


@dataclass(frozen=True)
class Design:
    """A family of adapters at a budget: a method with its settings, and what the family reached in
    each setup.
    """

    label: str
    method: str  #: as in `qpeft train --method`
    settings: dict[
        str, Any
    ]  #: of the method, without the one that `vary` names; see `settings_for`
    budget: int  #: most trainable parameters of the family in the study
    #: the setting with the largest of `values` that keeps to this budget on a base; None: no setting
    vary: str | None
    values: list[int]  #: ascending
    learning_rates: dict[str, float]  #: the safe one by base, and for all bases under ""
    #: parameters of LoRA r=1 for which these hold: they grow with the root of that number; None:
    #: they do not
    per_lora: int | None
    #: for each setup: base, base_parameters, data, steps, trainable, seeds; the mean test `loss` in
    #: nats per token with its 95 % interval from `low` to `high`, None of a single seed; the `share`
    #: of the reference's gain; all with the best settings there
    results: list[dict[str, Any]]
    #: normalizations of the base that the method trains; None: `settings` have its modules
    norms: Literal["all", "last"] | None = field(default=None, kw_only=True)

    def settings_for(self, base: nn.Module) -> dict[str, Any]:
        """The settings on this base. Raises ConfigError if it lacks normalizations that they need."""
        if self.norms is None:
            return self.settings
        targets = norm_targets(base) if self.norms == "all" else [last_norm(base)]
        return {**self.settings, "target_modules": targets}

    @property
    def share(self) -> float:
        """The gain in test loss over the base alone, as a share of the reference's: mean over
        the setups.
        """
        return fmean(result["share"] for result in self.results)

    @property
    def learning_rate(self) -> float:
        """A learning rate that is safe in all of its setups, whose bases are small and runs
        short.
        """
        bases = {result["base"] for result in self.results}
        only_base = bases.pop() if len(bases) == 1 else ""
        return self.learning_rates[only_base]

    def is_near(self, trainable: int) -> bool:
        """Whether so many trainable parameters are of the size that was measured."""
        smallest = min(result["trainable"] for result in self.results)
        return smallest / 2 <= trainable <= self.budget

    def with_value(self, value: int) -> Design:
        """With this value of the setting that `vary` names."""
        return replace(self, settings={**self.settings, str(self.vary): value})


class Evidence(NamedTuple):
    """Designs that were measured in the same setups with the same seeds."""

    reference: str  # whose gain is 1
    designs: list[Design]
    # by budget: shares of the best adapter's gain on bases that a choice did not know
    lost: dict[str, list[float]]
    # by the label of a design, the one of its family that was measured on a base above LARGE
    large: dict[str, Design]
    large_reference: str  # whose gain is 1 there

    def ranked(
        self, parameters: int, most: float = math.inf, wanted: float = math.inf
    ) -> list[Design]:
        """The designs of a budget of at most `most` for a base of so many parameters, the best
        first.

        They are ordered by their share. If there are results on a base of this size, these alone
        count. For a base above LARGE, families that were measured on such a base, with at most
        `wanted` parameters, share the places of their designs among the others, in the order of
        those results.
        """
        designs = []
        for design in self.designs:
            here = [row for row in design.results if row["base_parameters"] == parameters]
            if design.budget <= most:
                designs.append(replace(design, results=here or design.results))
        ranked = _best_first(designs)
        if parameters <= LARGE:
            return ranked
        large = {
            label: design
            for label, design in self.large.items()
            if design.results[0]["trainable"] <= wanted
        }
        measured = iter(_best_first(large[d.label] for d in ranked if d.label in large))
        return [next(measured) if design.label in large else design for design in ranked]


def _best_first(designs: Iterable[Design]) -> list[Design]:
    return sorted(designs, key=lambda design: (-design.share, design.label))


@cache
def read_evidence() -> Evidence:
    """The evidence that is part of qpeft."""
    content = json.loads((files("qpeft.methods") / "evidence.json").read_bytes())
    content["designs"] = [Design(**design) for design in content["designs"]]
    content["large"] = {label: Design(**design) for label, design in content["large"].items()}
    return Evidence(**content)
