"""Fills the tables of docs/findings.md and results/README.md with the values of the published rows.

    python evidence/page_tables.py

`make results` runs it; a test compares the pages with the rows.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean
from typing import NamedTuple

from transformers import AutoConfig

import comparisons
import qpeft
import suggest_evidence
import winners
from qpeft.files import write_text
from qpeft_lab.compare.stats import NO_DIFFERENCE, paired_difference
from qpeft_lab.compare.summary import Result, Summary
from qpeft_lab.demo import base_path
from recompute_tables import BITS, CIRCUIT, PAIRS, SHOTS, TWINS
from winners import ADAPTERS, EPOCHS, FINAL, RESULTS, ROOT, SETUPS, summaries_of, winners_of

PAGES = [
    ROOT / "docs" / f"{page}.md"
    for page in ("findings", "circuits", "quantum_peft", "small_adapters")
]
PAGES += [ROOT / "docs" / "other_adapters.md", RESULTS / "README.md"]
BYTES = (1_000, 2_000, 6_000, 25_000)
STORIES = {
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
}
STORIES |= {"num_key_value_heads": 4, "vocab_size": 512}  # of stories260K
REPLACEMENTS = {  # in words, of CIRCUIT
    "paper_none": "QPA, the paper's network: no circuit",
    "product": "Quantum-PEFT: nothing instead of CZ gates",
    "qaa_frozen": "QAA: the circuit's angles are frozen",
    "lora@qaa": "QAA: LoRA of its size",
}


def differences(rows: list[tuple[str, str, str]], what: str) -> str:
    """A line per row: what was replaced, and the difference in per cent of the reference's gain."""
    lines = [[what, "difference, per cent of the gain"], ["---"] * 2]
    for study, key, to in rows:
        setups = summaries_of(study)
        summary = setups.get("embedded") or next(iter(setups.values()))
        losses = [
            {seed: row["test_loss"] for seed, row in summary[one].successes.items()}
            for one in (key, to)
        ]
        found = paired_difference(*losses, to, lower_is_better=True)
        assert found is not None
        gain = _loss(summary["none"]) - _loss(summary.reference)
        mean, low, high = (
            f"{100 * (value or 0) / gain:+.1f}" for value in (found.mean, found.low, found.high)
        )
        text = f"{mean} [{low}, {high}]"
        size = f", {summary[key].mean('bytes_stored'):,.0f} bytes" if study == "bits" else ""
        name = REPLACEMENTS.get(key, summary[key].label) + size
        lines.append([name, text if found.verdict == NO_DIFFERENCE else f"**{text}**"])
    return _lines(lines)


def equal() -> str:
    """The best adapter of the equal search with a circuit minus the best without, by budget and
    setup.
    """
    summaries = summaries_of(FINAL)
    chosen = {name: winners_of(name) for name in summaries}
    rows = []
    for most in winners.BUDGETS:
        row: list[_Compared | None] = []
        for name, summary in summaries.items():
            ours, other = (summary[winners.best(chosen[name], most, has)] for has in (True, False))
            words = f"{_family(ours)} and {_family(other)}: "
            row.append(
                _Compared(words, comparisons.compared(ours, other), comparisons.margin(summary))
            )
        rows.append((f"{most:,}", row))
    return _grid(["parameters, at most", *_with_margins(summaries)], rows)


def pairs(study: str = FINAL, asked: Sequence[tuple[str, str]] = PAIRS) -> str:
    """Families of a search at each budget, averaged over the setups."""
    summaries = summaries_of(study)
    chosen = {name: winners_of(name, study) for name in summaries}
    budgets = sorted({most for of in chosen.values() for _, most in of})
    margin, rows = fmean(map(comparisons.margin, summaries.values())), []
    for one, other in asked:
        row: list[_Compared | None] = []
        for most in budgets:
            both = {
                name: (of.get((one, most)), of.get((other, most))) for name, of in chosen.items()
            }
            fair = [
                name
                for name, (ours, theirs) in both.items()
                if ours and theirs and ours.n <= theirs.n
            ]
            found = [
                comparisons.compared(*(summaries[name][f"{f}_{most}"] for f in (one, other)))
                for name in fair
            ]
            words = f"{len(fair)} of {len(both)} setups: " if len(fair) < len(both) else ""
            row.append(_Compared(words, comparisons.mean(found), margin) if found else None)
        some = next(iter(summaries.values()))
        labels = (
            next(_family(found) for found in some.results if found.key.startswith(f"{f}_"))
            for f in (one, other)
        )
        rows.append((" minus ".join(labels), row))
    return _grid(
        [f"parameters, at most (margin {margin:.3f})", *(f"{most:,}" for most in budgets)], rows
    )


def margins() -> str:
    """Circuits minus their classical replacements in each setup."""
    summaries = summaries_of("margins")
    asked = [one for one in next(iter(summaries.values())).study.methods if one.against]
    rows = [
        (one.label, [_averaged([s], str(one.against), one.key) for s in summaries.values()])
        for one in asked
    ]
    return _grid(["circuit minus", *_with_margins(summaries)], rows)


def epochs() -> str:
    """Framed circuits minus other families after one and four epochs, averaged over the setups."""
    summaries, rows = summaries_of(EPOCHS), []
    for (n, after), other in itertools.product(
        {1: "an epoch", 4: "four epochs"}.items(), ("uni", "xs", "tokens")
    ):
        of = [summary for name, summary in summaries.items() if name.endswith(f"-{n}")]
        row = [_averaged(of, f"framed_{most}", f"{other}_{most}") for most in winners.BUDGETS[:3]]
        rows.append(
            (f"{_family(of[0][f'{other}_128'])}, {after} (margin {row[0].margin:.3f})", row)
        )
    return _grid(["framed circuits minus", *(f"{most:,}" for most in winners.BUDGETS[:3])], rows)


def regrets() -> str:
    """What `suggest` answers on bases that its evidence does not know, and the share of the best
    gain that it loses.
    """
    summaries, known = summaries_of("elsewhere"), suggest_evidence.designs()
    lines = [
        ["parameters, at most", *map(SETUPS.__getitem__, summaries)],
        ["---:", *["---"] * len(summaries)],
    ]
    for most in winners.BUDGETS:
        answers = (suggest_evidence.regret(summary, most) for summary in summaries.values())
        found = [(known[key]["label"].partition(",")[0], 100 * lost) for key, lost in answers]
        lines.append([f"{most:,}", *(f"{family}: {lost:.1f} %" for family, lost in found)])
    return _lines(lines)


def rates() -> str:
    """The largest part of the best learning rate's gain that one of `suggest` loses; in brackets,
    without this base.
    """
    searches = {**summaries_of("equal-search"), **summaries_of("rates")}
    lines = [
        ["lost, in per cent", *map(SETUPS.__getitem__, searches)],
        ["---"] * (len(searches) + 1),
    ]
    for family, name in suggest_evidence.RATED.items():
        lost = {setup: [0.0, 0.0] for setup in searches}
        for tunings in (
            suggest_evidence.tuning(searches, key)
            for key in suggest_evidence.designs()
            if key.startswith(f"{family}_")
        ):
            for one in tunings:
                others = [other for other in tunings if other.base != one.base]
                for i, known in enumerate((tunings, others)):
                    lost[one.setup][i] = max(
                        lost[one.setup][i], one.lost(suggest_evidence.safe_learning_rate(known))
                    )
        lines.append(
            [name, *(f"{100 * own:.0f} ({100 * other:.0f})" for own, other in lost.values())]
        )
    return _lines(lines)


def powers() -> str:
    """What a learning rate that grows with a power of a quantity loses on a base whose searches did
    not choose it.
    """
    searches = {**summaries_of("equal-search"), **summaries_of("rates")}
    lines = [
        ["a rate that grows with", *suggest_evidence.RATED.values()],
        ["---", *["---:"] * len(suggest_evidence.RATED)],
    ]
    for quantity, power in [
        ("width", 0),
        *itertools.product(suggest_evidence.QUANTITIES, suggest_evidence.POWERS),
    ]:
        lost = dict.fromkeys(suggest_evidence.RATED, 0.0)
        for key, family in ((key, key.partition("_")[0]) for key in suggest_evidence.designs()):
            if family in lost:
                lost[family] = max(
                    lost[family],
                    suggest_evidence.left_out(
                        suggest_evidence.tuning(searches, key, (quantity, power))
                    ),
                )
        lines.append(
            [
                f"{quantity}, power {power:g}" if power else "nothing",
                *(f"{100 * most:.0f}" for most in lost.values()),
            ]
        )
    return _lines(lines)


def _with_margins(summaries: dict[str, Summary]) -> list[str]:
    return [
        f"{SETUPS[name]} (margin {comparisons.margin(summary):.3f})"
        for name, summary in summaries.items()
    ]


def _averaged(of: Sequence[Summary], key: str, to: str) -> _Compared:
    found = [comparisons.compared(summary[key], summary[to]) for summary in of]
    return _Compared("", comparisons.mean(found), fmean(map(comparisons.margin, of)))


class _Compared(NamedTuple):
    words: str
    found: comparisons.Paired
    margin: float


def _grid(header: list[str], rows: Sequence[tuple[str, Sequence[_Compared | None]]]) -> str:
    """A table of comparisons, whose verdicts are of one family."""
    cells = [cell for _, row in rows for cell in row if cell is not None]
    texts = {}
    for cell, verdict in zip(
        cells, comparisons.verdicts(*zip(*(cell[1:] for cell in cells), strict=True)), strict=True
    ):
        low, high = cell.found.interval()
        texts[cell] = f"{cell.words}{cell.found.mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"
    return _lines(
        [
            header,
            ["---"] * len(header),
            *([label, *(texts.get(c, "") for c in row)] for label, row in rows),
        ]
    )


def _family(found: Result) -> str:
    return re.split(r", \d", found.label)[0]


def stored() -> str:
    """The best adapter by the bytes that it takes with its share of a frame file, and its share of
    LoRA's gain.
    """
    summaries, reference = summaries_of(FINAL), f"lora_{winners.BUDGETS[-1]}"
    chosen = {
        name: {f"{f}_{b}": one for (f, b), one in winners_of(name).items()} for name in summaries
    }
    keys = sorted(set.intersection(*map(set, chosen.values())))

    def expected(key: str) -> float:
        """The share of LoRA's gain in the search, in validation loss."""
        return fmean(of[key].gain / of[reference].gain for of in chosen.values())

    def share(key: str) -> float:
        """That in the test loss."""
        gains = [
            [_loss(s["none"]) - _loss(s[k]) for k in (key, reference)] for s in summaries.values()
        ]
        return fmean(own / full for own, full in gains)

    lines = [
        ["adapters of the base", *(f"{limit:,} bytes each" for limit in BYTES)],
        ["---:", *["---"] * len(BYTES)],
    ]
    for n_adapters in (1, 10, 100, 1000):
        cells = []
        for limit in BYTES:
            fits = (
                key
                for key in keys
                if all(_bytes(s, s[key], n_adapters) <= limit for s in summaries.values())
            )
            key = max(fits, key=expected)
            cells.append(
                f"{_family(summaries[next(iter(summaries))][key])}, {100 * share(key):.0f} %"
            )
        lines.append([f"{n_adapters:,}", *cells])
    return _lines(lines)


def _bytes(summary: Summary, found: Result, n_adapters: int) -> float:
    """Of the stored tensors, with the share of a frame file that so many adapters have in common."""
    frames = 0
    if found.method.settings.get("frame") in ("gradient", "sign"):
        frames = _frame_bytes(summary.study.run.model, json.dumps(found.method.settings))
    return (found.mean("bytes_stored") or 0) + frames / n_adapters


@cache
def _frame_bytes(base: str, settings: str) -> int:
    shape = (
        AutoConfig.from_pretrained(base_path())
        if base == "embedded"
        else AutoConfig.for_model("llama", **STORIES)
    )
    config = {"target_modules": "all-linear", **json.loads(settings), "task_type": "CAUSAL_LM"}
    return qpeft.plan(shape, qpeft.QuantumPeftConfig(**config)).sizes["frame_bytes"]


def studies() -> str:
    """Every study with its question, and its rows by setup."""
    lines = [["study", "question", "rows"], ["---"] * 3]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        summaries = summaries_of(folder.name)
        links = ", ".join(f"[{setup}]({folder.name}/{setup}.jsonl.xz)" for setup in summaries)
        question = next(iter(summaries.values())).study.question
        question = question.replace(
            "results/PROTOCOL.md", "[the protocol](../evidence/PROTOCOL.md)"
        )
        question = question.replace("The protocol is [the", "See [the")
        lines.append([f"`{folder.name}`", question, links])
    return _lines(lines)


def _loss(method: Result) -> float:
    assert method.metric is not None
    return method.metric.mean


def _lines(lines: list[list[str]]) -> str:
    """A table in Markdown; the second line is the ruler."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    **{
        "circuit": lambda: differences(CIRCUIT, "replacement"),
        "bits": lambda: differences(BITS, "angles"),
    },
    **{
        "shots": lambda: differences(SHOTS, "QPA trained with"),
        "twins": lambda: pairs(ADAPTERS, TWINS),
    },
    **{
        make.__name__: make
        for make in (equal, pairs, margins, epochs, regrets, rates, powers, stored, studies)
    },
}
ROWS_OF = {
    name: [s for s, *_ in rows]
    for name, rows in (("circuit", CIRCUIT), ("bits", BITS), ("shots", SHOTS))
}
ROWS_OF |= {name: [FINAL] for name in ("equal", "pairs", "stored")}
ROWS_OF |= {"margins": ["margins"], "epochs": [EPOCHS], "twins": [ADAPTERS]}
ROWS_OF |= {
    "regrets": ["elsewhere"],
    "rates": ["equal-search", "rates"],
    "powers": ["equal-search", "rates"],
}  # of a table


def filled(text: str) -> str:
    """The page with new tables between its marks."""

    def table(mark: re.Match[str]) -> str:
        links = ", ".join(
            f"[`{study}`](../results/{study})" for study in dict.fromkeys(ROWS_OF.get(mark[2], ()))
        )
        return "\n\n".join(
            filter(None, (mark[1], TABLES[mark[2]](), links and f"Rows: {links}", mark[3]))
        )

    return re.sub("(<!-- table: (.*?) -->).*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
