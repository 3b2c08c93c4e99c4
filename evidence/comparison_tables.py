"""Tables that compare adapters: an adapter with a circuit and its rivals, or its replacement.

Every difference is a test loss minus another, in per cent of LoRA's gain in the same setup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import comparisons
from comparisons import Paired, compared, mean_loss
from qpeft_lab.compare.rows import Row, succeeded
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


QUESTIONS = {  # the labels of the study `margins`
    "QPA, frozen angles": "QPA minus frozen angles",
    "QPA, Gaussian features": "QPA minus Gaussian features",
    "Quantum-PEFT, signs": "Quantum-PEFT minus random signs",
    "framed signs": "framed circuits minus random signs",
    "QAA, Givens rotations": "QAA minus Givens rotations",
}

LIMITS = {  # of what a twin can show
    "frozen angles": "the angles hardly move",
    "Gaussian features": "the same trained map follows both",
    "random signs": "the trained rotations stay",
    "Givens rotations": "an earlier study of frozen angles favored the circuit",
    "OFT": "linear CUA is OFT, so this tests no circuit",
    "MPO": "MPO has more parameters",
}


class Change(NamedTuple):
    """A method of a study of controls, and the one that it replaces."""

    key: str
    original: str


ANGLES = ("scale_1", "scale_10", "scale_50", "scale_200")  # of the study `angles`
CIRCUIT = {  # the studies have other keys for one replacement
    "QPA, the paper's network: no circuit": [
        Change("paper_none", "qpa_paper"),
        Change("qpa_none", "qpa"),
    ],
    "Quantum-PEFT: nothing instead of CZ gates": [Change("product", "quantum_peft")],
    "QAA: the circuit's angles are frozen": [Change("qaa_frozen", "qaa")],
    "QAA: LoRA of its size": [Change("lora@qaa", "qaa")],
}
CONTROLS = ("controls", "controls-80-steps")
OLD_SETUPS = {  # names of setups in studies before the protocol
    "stories-grimm": "stories260K, Grimm's tales",
    "embedded": "embedded base, NumPy's documentation",
    "grimm": "stories260K, Grimm's tales",
    "wikitext": "stories260K, WikiText-2",
}
BITS = [Change(key, "float32") for key in ("bits_8", "bits_4", "bits_3", "bits_2", "shared")]
SHOTS = [
    Change("shots_65536", "exact"),
    Change("shots_1024", "exact"),
    Change("paper_128", "paper"),
]
NOISE = [
    Change("noise_0.001", "exact"),
    Change("noise_0.01", "exact"),
    Change("paper_0.05", "paper"),
]


class Cell(NamedTuple):
    """A comparison in a table, and words before it."""

    difference: Paired
    words: str = ""

    def text(self, verdict: str) -> str:
        low, high = self.difference.interval()
        return f"{self.words}{self.difference.mean:+.1f} [{low:+.1f}, {high:+.1f}], {verdict}"


class Line(NamedTuple):
    """A line of a table; a cell is None if there is nothing to compare."""

    label: str
    cells: list[Cell | None]


class Grid(NamedTuple):
    """Comparisons of one family, which a page shows as a table and as a forest of intervals."""

    header: list[str]
    rows: list[Line]
    margin: float = comparisons.MARGIN  # per cent of the gain

    def verdicts(self) -> list[list[str]]:
        """That of each cell, in the shape of the rows; "" where there is nothing to compare."""
        cells = [cell for row in self.rows for cell in row.cells if cell is not None]
        decided = comparisons.verdicts([cell.difference for cell in cells], self.margin)
        return [["" if cell is None else next(decided) for cell in row.cells] for row in self.rows]

    def __str__(self) -> str:
        """The table."""
        lines = []
        for row, verdicts in zip(self.rows, self.verdicts(), strict=True):
            texts = [
                "" if cell is None else cell.text(verdict)
                for cell, verdict in zip(row.cells, verdicts, strict=True)
            ]
            lines.append([row.label, *texts])
        return table(self.header, lines)


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
    return Best(ours, other, compared(summary, ours.key, other.key))


def equal() -> Grid:
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
            cells.append(Cell(both.difference, " and ".join(names) + ": "))
        rows.append(Line(f"{budget:,}", cells))
    return Grid(["parameters, at most", *(SETUPS[setup] for setup in setups)], rows)


def pairs(study: str, asked: Sequence[Pair]) -> Grid:
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
        rows.append(Line(label, cells))
    return Grid(["parameters, at most", *(f"{budget:,}" for budget in budgets)], rows)


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
        differences.append(compared(summary, ours.key, other.key))
    if not differences:
        return None
    n = len(differences)
    n_all = len(summaries)
    words = f"{n} of {n_all} setups: " if n < n_all else ""
    return Cell(comparisons.mean(differences), words)


# -- five questions with a margin


def margins() -> Grid:
    """Circuits minus their classical replacements in each setup."""
    header = ["circuit minus", *(SETUPS[setup] for setup in summaries_of("margins"))]
    rows = [
        Line(question, [Cell(each) for each in in_setups])
        for question, in_setups in questions().items()
    ]
    return Grid(header, rows)


def pooled() -> Grid:
    """The same, averaged over the setups."""
    rows = [
        Line(question, [Cell(comparisons.mean(in_setups))])
        for question, in_setups in questions().items()
    ]
    return Grid(["circuit minus", "mean of four setups, per cent of LoRA's gain"], rows)


def sides() -> str:
    """Parameters, learning rate and share of LoRA's gain of each circuit and replacement above."""
    summaries = summaries_of("margins")
    rows = []
    methods = summaries["embedded-numpy"].study.methods
    for key in [method.key for method in methods if method.key not in ("none", "lora_r8")]:
        cells = []
        for summary in summaries.values():
            result = summary[key]
            lowered = mean_loss(summary["none"]) - mean_loss(result)
            share = 100 * lowered / comparisons.gain(summary)
            cells.append(f"{share:.0f} %; {result.method.trainable:,} at {result.lr:g}")
        rows.append([str(summaries["embedded-numpy"][key].label), *cells])
    nats = [f"{comparisons.gain(summary):.3f} nats" for summary in summaries.values()]
    rows.append(["LoRA r=8, its gain", *nats])
    return table(["adapter", *(SETUPS[setup] for setup in summaries)], rows)


def gallery() -> str:
    """The verdict in words of each published circuit against its classical replacement, from the
    tables `pooled` and `twins`.
    """
    rows = []
    averages = pooled()
    for line, (verdict,) in zip(averages.rows, averages.verdicts(), strict=True):
        circuit, _, instead = line.label.partition(" minus ")
        rows.append([circuit, instead, verdict, LIMITS.get(instead, "")])
    twins = pairs(ADAPTERS, TWINS)
    for line, verdicts in zip(twins.rows, twins.verdicts(), strict=True):
        circuit, _, instead = line.label.partition(" minus ")
        if instead in ("LoRA", "CUA"):
            continue  # another adapter or readout, not a replacement of the circuit
        budgets: dict[str, list[str]] = {}  # by verdict
        for budget, verdict in zip(twins.header[1:], verdicts, strict=True):
            if verdict:
                budgets.setdefault(verdict, []).append(budget)
        words = [f"{verdict} at {' / '.join(at)}" for verdict, at in budgets.items()]
        rows.append([circuit, instead, ", ".join(words), LIMITS.get(instead, "")])
    header = ["adapter", "instead of its circuit", "verdict of the circuit", "what limits it"]
    return table(header, rows)


def questions() -> dict[str, list[Paired]]:
    """By replacement, the difference in each setup."""
    summaries = list(summaries_of("margins").values())
    return {
        QUESTIONS[str(method.label)]: [compared(s, method.against, method.key) for s in summaries]
        for method in summaries[0].study.methods
        if method.against
    }


# -- do QPA's angles move?


def angles() -> Grid:
    """QPA with trained angles minus QPA with frozen ones, by the factor on the angles' learning
    rate, with how far they moved on average.
    """
    summaries = summaries_of("angles")
    rows = []
    for key in ANGLES:
        cells: list[Cell | None] = []
        for summary in summaries.values():
            moved = summary[key].mean("angles_moved")
            cells.append(Cell(compared(summary, key, "frozen"), f"{moved:.2f} rad; "))
        rows.append(Line(_factor(key), cells))
    return Grid(["factor", *(SETUPS[setup] for setup in summaries)], rows)


def angles_far() -> str:
    """Of each factor the trial that moved the angles furthest, and what its validation loss lost to
    that of frozen angles at the same learning rate, in per cent of LoRA's gain.
    """
    summaries = summaries_of("angles")
    rows = []
    for key in ANGLES:
        texts = []
        for summary in summaries.values():
            untrained = summary["none"].mean("valid_loss")
            best_lora = min(row["valid_loss"] for row in _successes(summary["lora_r8"]))
            frozen = {row["lr"]: row["valid_loss"] for row in _successes(summary["frozen"])}
            trials = [row for row in _successes(summary[key]) if row["lr"] in frozen]
            furthest = max(trials, key=lambda row: row["angles_moved"])
            lost = furthest["valid_loss"] - frozen[furthest["lr"]]
            of_gain = 100 * lost / (untrained - best_lora)
            texts.append(f"{furthest['angles_moved']:.2f} rad; {of_gain:+.1f}")
        rows.append([_factor(key), *texts])
    return table(["factor", *(SETUPS[setup] for setup in summaries)], rows)


def _successes(result: Result) -> list[Row]:
    return [row for row in result.trials.values() if row is not None and succeeded(row)]


def _factor(key: str) -> str:
    return key.removeprefix("scale_")


def epochs() -> Grid:
    """Framed circuits minus other families after one and four epochs, averaged over the setups."""
    budgets = BUDGETS[:3]
    rows = []
    for n, duration in ((1, "an epoch"), (4, "four epochs")):
        summaries = [s for setup, s in summaries_of(EPOCHS).items() if setup.endswith(f"-{n}")]
        for other in ("uni", "xs", "tokens"):
            cells: list[Cell | None] = []
            for budget in budgets:
                keys = (f"framed_{budget}", f"{other}_{budget}")
                cells.append(Cell(comparisons.mean([compared(s, *keys) for s in summaries])))
            rows.append(Line(f"{_family(summaries[0], other)}, {duration}", cells))
    return Grid(["framed circuits minus", *(f"{budget:,}" for budget in budgets)], rows)


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
            change = next(each for each in alternatives if present.issuperset(each))
            texts.append(change_text(summary, change))
        rows.append([label, *texts])
    return table(header, rows)


def bits() -> str:
    """Angles of few bits, with the bytes that they take."""
    summary = summaries_of("bits")["embedded"]
    rows = []
    for change in BITS:
        result = summary[change.key]
        label = f"{result.label}, {result.mean('bytes_stored'):,.0f} bytes"
        rows.append([label, change_text(summary, change)])
    return table(["angles", "loss minus that with 32 bits, per cent of its gain"], rows)


def shots() -> str:
    """Training with shots, and with noise."""
    rows = []
    for study, changes in (("shots", SHOTS), ("noise", NOISE)):
        (summary,) = summaries_of(study).values()
        rows += [[summary[each.key].label, change_text(summary, each)] for each in changes]
    header = "loss minus that with exact probabilities, per cent of its gain"
    return table(["QPA trained with", header], rows)


def change_text(summary: Summary, change: Change) -> str:
    """The loss of a method minus that of the one that it replaces, in per cent of the reference's
    gain; bold if the interval excludes 0.
    """
    losses, others = (
        {seed: row["test_loss"] for seed, row in summary[key].successes.items()} for key in change
    )
    difference = paired_difference(losses, others, change.original, lower_is_better=True)
    assert difference is not None
    gain = mean_loss(summary["none"]) - mean_loss(summary.reference)
    mean, low, high = (
        f"{100 * (value or 0) / gain:+.1f}"
        for value in (difference.mean, difference.low, difference.high)
    )
    text = f"{mean} [{low}, {high}]"
    return text if difference.verdict == NO_DIFFERENCE else f"**{text}**"


def _family(summary: Summary, name: str) -> str:
    """The family's name in words."""
    return family_of(next(r for r in summary.results if r.key.startswith(f"{name}_")))


def family_of(result: Result) -> str:
    return re.split(r", \d", result.label)[0]
