"""Which share of the gain of AdamW training with forward passes reaches: the study forward-passes.

    python benchmarks/forward_passes_table.py FOLDER [FOLDER ...]

For each folder of the study, two Markdown tables, which docs/results/forward-passes.md has as well: adapters whose
frames or initial values are fitted on data, and those without data. The share of an adapter X is, seed by seed,
(none - X_es) / (none - X_adam) in test loss; all weights have MeZO instead of the evolution strategy. The last column
is the test loss of the framed circuit minus that of the row, both trained with forward passes and paired by seed: below
0 the circuit is better. In brackets are 95 % t intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft import methods
from qpeft.compare.analysis.statistics import Difference, Stats, describe, paired_difference
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import read_rows
from qpeft.training.methods import build_config
from qpeft.training.settings import TrainSettings

CIRCUIT = "circuit_es"
WITHOUT_BACKWARD, ADAM = ("_es", "_mezo"), "_adam"
GOAL = 0.8
GAINS = ("gain of Adam", "gain of ES or MeZO", "share", f"at least {GOAL:.0%}")
HEADINGS = ("adapter", "parameters", *GAINS, "circuit minus this")
RULER = "| --- | ---: | ---: | ---: | ---: | --- | ---: |"


@dataclass(frozen=True)
class Line:
    """An adapter trained with forward passes, compared with AdamW and with the framed circuit."""

    label: str
    trainable: int
    is_fitted: bool  # on data, with backward passes, before training
    adam: Stats  # gain in test loss over the untrained base, by seed
    gain: Stats
    share: Stats
    to_circuit: Difference | None  # None for the circuit itself

    @property
    def reaches_goal(self) -> str:
        """Whether the interval of the share is above the goal ("yes"), below it ("no"), or includes it."""
        reach = self.share.half_width
        if reach is None or abs(self.share.mean - GOAL) <= reach:
            return "not shown"
        return "yes" if self.share.mean > GOAL else "no"


def lines_of(summary: Summary) -> list[Line]:
    """The lines of a study, those with the highest share first. Methods that lack seeds or failed are left out."""
    usable = {m.key: m for m in summary.methods if m.metric is not None and not m.has_failures}
    if "none" not in usable:
        raise SystemExit(f"{summary.study.name} has no result of the untrained base, method none")
    untrained = losses(usable["none"])
    base = next(iter(untrained.values()))
    found = []
    for key, method in usable.items():
        ending = next((end for end in WITHOUT_BACKWARD if key.endswith(end)), None)
        adam = usable.get(key.removesuffix(ending or "") + ADAM)
        if ending is None or adam is None:
            continue
        gains, adams = ({seed: base - loss for seed, loss in losses(m).items()} for m in (method, adam))
        shares = {seed: gains[seed] / adams[seed] for seed in sorted(gains.keys() & adams.keys())}
        stats = [describe(values) for values in (adams, gains, shares)]
        assert stats[0] is not None
        assert stats[1] is not None
        if stats[2] is None:
            continue
        circuit = usable.get(CIRCUIT)
        to_circuit = None
        if circuit is not None and key != CIRCUIT:
            to_circuit = paired_difference(losses(circuit), losses(method), key, lower_is_better=True)
        found.append(Line(method.label, method.trainable, is_fitted(method), *stats, to_circuit))
    return sorted(found, key=lambda line: -line.share.mean)


def losses(method: MethodSummary) -> dict[int, float]:
    """Test loss by seed."""
    return method.measurements["quality.test_loss"].values


def is_fitted(method: MethodSummary) -> bool:
    """Whether a part of the adapter is computed from training data before the first step."""
    record = methods.get(method.method)
    if record.config is None:
        return False
    asked: dict[str, Any] = {"method": method.method, "method_settings": method.settings}
    config = build_config(TrainSettings(model="", data="", out="", **asked))
    return bool(record.ask("calibrate", config) or record.ask("fit", config))


def tables(summary: Summary) -> Iterator[str]:
    """Lines of Markdown."""
    lines = lines_of(summary)
    parts = {"Frames or initial values fitted on data": True, "Without data": False}
    for title, wanted in parts.items():
        yield from (f"**{title}**", "", f"| {' | '.join(HEADINGS)} |", RULER)
        yield from (f"| {' | '.join(cells(line))} |" for line in lines if line.is_fitted is wanted)
        yield ""
    shown = {line.label for line in lines}
    if left_out := [m.key for m in summary.methods if m.key.endswith(WITHOUT_BACKWARD) and m.label not in shown]:
        yield f"Left out, because a run is missing or failed: {', '.join(left_out)}."


def cells(line: Line) -> tuple[str, ...]:
    difference = line.to_circuit
    return (
        line.label,
        f"{line.trainable:,}",
        f"{line.adam.mean:.3f}",
        f"{line.gain.mean:.3f}",
        interval(line.share.mean, line.share.half_width, ".1%"),
        line.reaches_goal,
        "" if difference is None else bounds(difference.mean, difference.low, difference.high, "+.4f"),
    )


def interval(mean: float, reach: float | None, form: str) -> str:
    return bounds(mean, None if reach is None else mean - reach, None if reach is None else mean + reach, form)


def bounds(mean: float, low: float | None, high: float | None, form: str) -> str:
    return f"{mean:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="the --out of qpeft compare run")
    for folder in parser.parse_args(arguments).folders:
        summary = summarise(read_study(folder), read_rows(folder))
        title = f"## {Path(summary.study.base.id).name}, {Path(summary.study.data.id).name}"
        print("\n".join([title, "", *tables(summary)]), end="\n\n")


if __name__ == "__main__":
    main()
