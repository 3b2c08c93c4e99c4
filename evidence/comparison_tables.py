"""Tables that compare adapters: an adapter with a circuit and its rivals, or its replacement.

Every difference is a test loss minus another, in per cent of LoRA's gain in the same setup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import comparisons
from comparisons import Paired, mean_loss
from qpeft_lab.compare.stats import NO_DIFFERENCE, paired_difference
from qpeft_lab.compare.summary import Result, Summary
from table_text import table
from winners import (
    ADAPTERS,
    BUDGETS,
    EPOCHS,
    FINAL,
    SETUPS,
    Winner,
    best,
    summaries_of,
    winners_of,
)

ABOUT_EQUAL = 0.1  # sizes that differ by less


class Pair(NamedTuple):
    """Two families that are compared at each budget."""

    ours: str
    other: str
    equal_sizes: bool = False  # in setups in which both have about the same size only


PAIRS = [
    Pair("qpa", "uni"),
    Pair("qpa", "lora"),
    Pair("framed", "signs"),
    Pair("framed", "lie"),
    Pair("framed", "core"),
    Pair("framed", "uni"),
]
LATER_PAIRS = [  # chosen with all results known
    Pair("plain", "uni"),
    Pair("core", "xs"),
    Pair("core", "sb"),
    Pair("qpa", "lora", equal_sizes=True),
]
TWINS = [
    Pair("cua", "oft"),
    Pair("magnitude", "cua"),
    Pair("quic", "quic_random"),
    Pair("quanta", "mpo"),
    Pair("quic", "lora"),
    Pair("quanta", "lora"),
    Pair("qchft", "lora"),
]


class Keys(NamedTuple):
    """A method and the one that it replaces, in a study of controls."""

    replacement: str
    original: str


CIRCUIT = {  # the studies have other keys for one replacement
    "QPA, the paper's network: no circuit": [
        Keys("paper_none", "qpa_paper"),
        Keys("qpa_none", "qpa"),
    ],
    "Quantum-PEFT: nothing instead of CZ gates": [Keys("product", "quantum_peft")],
    "QAA: the circuit's angles are frozen": [Keys("qaa_frozen", "qaa")],
    "QAA: LoRA of its size": [Keys("lora@qaa", "qaa")],
}
CONTROLS = ("controls", "controls-80-steps")
OLD_SETUPS = {  # names of setups in studies before the protocol
    "stories-grimm": "stories260K, Grimm's tales",
    "embedded": "embedded base, NumPy's documentation",
    "grimm": "stories260K, Grimm's tales",
    "wikitext": "stories260K, WikiText-2",
}


class OfStudy(NamedTuple):
    """Two methods of a study on one setup."""

    study: str
    key: str
    to: str


BITS = [
    OfStudy("bits", key, "float32") for key in ("bits_8", "bits_4", "bits_3", "bits_2", "shared")
]
SHOTS = [
    OfStudy("shots", "shots_65536", "exact"),
    OfStudy("shots", "shots_1024", "exact"),
    OfStudy("shots", "paper_128", "paper"),
    OfStudy("noise", "noise_0.001", "exact"),
    OfStudy("noise", "noise_0.01", "exact"),
    OfStudy("noise", "paper_0.05", "paper"),
]


class Cell(NamedTuple):
    """A comparison in a table, and words before it."""

    words: str
    difference: Paired

    def text(self, verdict: str) -> str:
        low, high = self.difference.interval()
        return f"{self.words}{self.difference.mean:+.1f} [{low:+.1f}, {high:+.1f}], {verdict}"


class Row(NamedTuple):
    """A line of a table; a cell is None if there is nothing to compare."""

    label: str
    cells: list[Cell | None]


def grid(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of comparisons, whose verdicts are of one family."""
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    verdicts = comparisons.verdicts([cell.difference for cell in cells])
    lines = []
    for row in rows:
        texts = ["" if cell is None else cell.text(next(verdicts)) for cell in row.cells]
        lines.append([row.label, *texts])
    return table(header, lines)


# -- the equal search


class Best(NamedTuple):
    """The best adapter of a setup with a circuit and the best without, and their difference."""

    ours: Winner
    other: Winner
    difference: Paired


def best_of(setup: str, budget: int) -> Best:
    """Those of the equal search with at most so many parameters."""
    chosen = winners_of(setup)
    ours = best(chosen, budget, has_circuit=True)
    other = best(chosen, budget, has_circuit=False)
    summary = summaries_of(FINAL)[setup]
    return Best(ours, other, comparisons.compared(summary, ours.key, other.key))


def equal() -> str:
    """The best adapter of the equal search with a circuit minus the best without, by budget and
    setup, with parameters and learning rate of both.
    """
    setups = list(summaries_of(FINAL))
    rows = []
    for budget in BUDGETS:
        cells: list[Cell | None] = []
        for setup in setups:
            both = best_of(setup, budget)
            names = (
                f"{family_of(each.result)} ({each.result.method.trainable:,} at {each.lr:g})"
                for each in (both.ours, both.other)
            )
            cells.append(Cell(" and ".join(names) + ": ", both.difference))
        rows.append(Row(f"{budget:,}", cells))
    return grid(["parameters, at most", *(SETUPS[setup] for setup in setups)], rows)


def pairs(study: str, asked: Sequence[Pair]) -> str:
    """Families of a search at each budget, averaged over the setups."""
    summaries = summaries_of(study)
    chosen = {setup: winners_of(setup, study) for setup in summaries}
    budgets = sorted({budget for of_setup in chosen.values() for _, budget in of_setup})
    some_summary = next(iter(summaries.values()))
    rows = []
    for pair in asked:
        label = f"{_family(some_summary, pair.ours)} minus {_family(some_summary, pair.other)}"
        if pair.equal_sizes:
            label += ", sizes about equal"
        cells = [pair_cell(pair, budget, summaries, chosen) for budget in budgets]
        rows.append(Row(label, cells))
    return grid(["parameters, at most", *(f"{budget:,}" for budget in budgets)], rows)


def pair_cell(
    pair: Pair,
    budget: int,
    summaries: Mapping[str, Summary],
    chosen: Mapping[str, Mapping[tuple[str, int], Winner]],
) -> Cell | None:
    """The mean over the setups in which the first family had no more configurations than the
    second; None if there are none.
    """
    differences = []
    for setup, summary in summaries.items():
        ours = chosen[setup].get((pair.ours, budget))
        other = chosen[setup].get((pair.other, budget))
        if ours is None or other is None or ours.n > other.n:
            continue
        ratio = ours.result.method.trainable / other.result.method.trainable
        if pair.equal_sizes and abs(ratio - 1) > ABOUT_EQUAL:
            continue
        differences.append(comparisons.compared(summary, ours.key, other.key))
    if not differences:
        return None
    n, n_all = len(differences), len(summaries)
    words = f"{n} of {n_all} setups: " if n < n_all else ""
    return Cell(words, comparisons.mean(differences))


# -- five questions with a margin


def margins() -> str:
    """Circuits minus their classical replacements in each setup."""
    summaries = summaries_of("margins")
    rows = [Row(label, list(of_setup.values())) for label, of_setup in _questions(summaries)]
    return grid(["circuit minus", *(SETUPS[setup] for setup in summaries)], rows)


def pooled() -> str:
    """The same, averaged over the setups."""
    summaries = summaries_of("margins")
    rows = []
    for label, of_setup in _questions(summaries):
        average = comparisons.mean([cell.difference for cell in of_setup.values()])
        rows.append(Row(label, [Cell("", average)]))
    return grid(["circuit minus", "mean of four setups, per cent of LoRA's gain"], rows)


def _questions(summaries: Mapping[str, Summary]) -> list[tuple[str, dict[str, Cell]]]:
    """By replacement, its comparison in each setup."""
    study = next(iter(summaries.values())).study
    questions = []
    for method in study.methods:
        if method.against:
            of_setup = {
                setup: Cell("", comparisons.compared(summary, method.against, method.key))
                for setup, summary in summaries.items()
            }
            questions.append((str(method.label), of_setup))
    return questions


def epochs() -> str:
    """Framed circuits minus other families after one and four epochs, averaged over the setups."""
    summaries = summaries_of(EPOCHS)
    budgets = BUDGETS[:3]
    rows = []
    for n, duration in ((1, "an epoch"), (4, "four epochs")):
        of_length = [s for setup, s in summaries.items() if setup.endswith(f"-{n}")]
        for other in ("uni", "xs", "tokens"):
            cells: list[Cell | None] = []
            for budget in budgets:
                differences = [
                    comparisons.compared(s, f"framed_{budget}", f"{other}_{budget}")
                    for s in of_length
                ]
                cells.append(Cell("", comparisons.mean(differences)))
            rows.append(Row(f"{_family(of_length[0], other)}, {duration}", cells))
    return grid(["framed circuits minus", *(f"{budget:,}" for budget in budgets)], rows)


# -- studies before the protocol: intervals over seeds, without blocks


def circuit() -> str:
    """What a replacement changes, in every setup of the studies of controls."""
    header = ["replacement"]
    columns = []
    for study in CONTROLS:
        for setup, summary in summaries_of(study).items():
            header.append(f"{OLD_SETUPS[setup]}, {summary.study.run.steps} steps")
            columns.append(summary)
    rows = []
    for label, alternatives in CIRCUIT.items():
        texts = []
        for summary in columns:
            present = {result.key for result in summary.results}
            keys = next(keys for keys in alternatives if present.issuperset(keys))
            texts.append(_change(summary, keys.replacement, keys.original))
        rows.append([label, *texts])
    return table(header, rows)


def differences(asked: Sequence[OfStudy], what: str) -> str:
    """A line per method: its difference from another, in per cent of the reference's gain."""
    rows = []
    for study, key, to in asked:
        setups = summaries_of(study)
        summary = setups.get("embedded") or next(iter(setups.values()))
        label = summary[key].label
        if study == "bits":
            label += f", {summary[key].mean('bytes_stored'):,.0f} bytes"
        rows.append([label, _change(summary, key, to)])
    return table([what, "difference, per cent of the gain"], rows)


def _change(summary: Summary, key: str, to: str) -> str:
    """The loss of a method minus that of another; bold if the interval excludes 0."""
    losses, others = (
        {seed: row["test_loss"] for seed, row in summary[name].successes.items()}
        for name in (key, to)
    )
    change = paired_difference(losses, others, to, lower_is_better=True)
    assert change is not None
    gain = mean_loss(summary["none"]) - mean_loss(summary.reference)
    mean, low, high = (
        f"{100 * (value or 0) / gain:+.1f}" for value in (change.mean, change.low, change.high)
    )
    text = f"{mean} [{low}, {high}]"
    return text if change.verdict == NO_DIFFERENCE else f"**{text}**"


def _family(summary: Summary, name: str) -> str:
    """The family's name in words."""
    return family_of(next(r for r in summary.results if r.key.startswith(f"{name}_")))


def family_of(result: Result) -> str:
    return re.split(r", \d", result.label)[0]


def twins() -> str:
    return pairs(ADAPTERS, TWINS)
