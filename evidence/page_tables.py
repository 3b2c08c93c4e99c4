"""Fills the tables of docs/findings.md and other pages with the values of the published rows.

    python evidence/page_tables.py [PAGE ...]

`make results` runs it; a test compares the pages with the rows.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from transformers import AutoConfig

import comparison_tables
import qpeft
import ready_adapters
import real_model
import served_customers
import smollm2_tables
import suggest_tables
from comparison_tables import CONTROLS, LATER_PAIRS, PAIRS, TWINS, Grid
from comparisons import mean_loss
from qpeft.files import read_json, write_text
from qpeft_lab.cli.console import size
from qpeft_lab.compare.summary import Result, Summary
from qpeft_lab.demo import base_path
from smollm2_tables import (
    DESCRIBED,
    HEADS,
    RECIPE,
    SMOLLM2,
    UPPER,
    described,
    recipe,
    stage_4,
    stage_8,
)
from table_text import table
from winners import ADAPTERS, BUDGETS, EPOCHS, FINAL, RESULTS, ROOT, summaries_of, winners_of

PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "findings.md",
    ROOT / "docs" / "circuits.md",
    ROOT / "docs" / "quantum_peft.md",
    ROOT / "docs" / "small_adapters.md",
    ROOT / "docs" / "real_model.md",
    ROOT / "docs" / "reproducing.md",
    ROOT / "docs" / "verdict.md",
    RESULTS / "README.md",
    *sorted((ROOT / "examples" / "adapters").rglob("README.md")),
]
BYTES = (1_000, 2_000, 6_000, 25_000)
STORIES = {  # of stories260K
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
LORA = f"lora_{BUDGETS[-1]}"


def stored() -> str:
    """The best adapter by the bytes that it takes with its share of a frame file, and its share of
    LoRA's gain.
    """
    summaries = summaries_of(FINAL)
    chosen = {
        setup: {winner.key: winner for winner in winners_of(setup).values()} for setup in summaries
    }
    in_all_setups = sorted(set.intersection(*map(set, chosen.values())))

    def expected(key: str) -> float:
        """The share of LoRA's gain in the search, in validation loss."""
        return fmean(winners[key].gain / winners[LORA].gain for winners in chosen.values())

    def share(key: str) -> float:
        """That in the test loss."""
        shares = []
        for summary in summaries.values():
            untrained = mean_loss(summary["none"])
            own = untrained - mean_loss(summary[key])
            shares.append(own / (untrained - mean_loss(summary[LORA])))
        return fmean(shares)

    def fits(key: str, limit: int, n_adapters: int) -> bool:
        sizes = (stored_bytes(s, s[key], n_adapters) for s in summaries.values())
        return all(size <= limit for size in sizes)

    rows = []
    some_summary = next(iter(summaries.values()))
    for n_adapters in (1, 10, 100, 1000):
        texts = []
        for limit in BYTES:
            small = [key for key in in_all_setups if fits(key, limit, n_adapters)]
            key = max(small, key=expected)
            family = comparison_tables.family_of(some_summary[key])
            texts.append(f"{family}, {100 * share(key):.0f} %")
        rows.append([f"{n_adapters:,}", *texts])
    return table(["adapters of the base", *(f"{limit:,} bytes each" for limit in BYTES)], rows)


def stored_bytes(summary: Summary, result: Result, n_adapters: int) -> float:
    """Of the stored tensors, with the share of a frame file that so many adapters have in common."""
    frames = 0
    if result.method.settings.get("frame") in ("gradient", "sign"):
        frames = _frame_bytes(summary.study.run.model, json.dumps(result.method.settings))
    return (result.mean("bytes_stored") or 0) + frames / n_adapters


@cache
def _frame_bytes(base: str, settings: str) -> int:
    stories = AutoConfig.for_model("llama", **STORIES)
    shape = AutoConfig.from_pretrained(base_path()) if base == "embedded" else stories
    config = {"target_modules": "all-linear", **json.loads(settings), "task_type": "CAUSAL_LM"}
    return qpeft.plan(shape, qpeft.QuantumPeftConfig(**config)).sizes["frame_bytes"]


def studies() -> str:
    """Every study with its question, and its rows by setup."""
    rows = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        of_question: dict[str, list[str]] = {}
        for setup, summary in summaries_of(folder.name).items():
            link = f"[{setup}]({folder.name}/{setup}.jsonl.xz)"
            of_question.setdefault(_with_links(summary.study.question), []).append(link)
        rows += [
            [f"`{folder.name}`", question, ", ".join(links)]
            for question, links in of_question.items()
        ]
    return table(["study", "question", "rows"], rows)


def _with_links(question: str) -> str:
    """The question, with a link to its protocol. Older rows name the place where that was."""
    question = question.replace("The protocol is results/PROTOCOL.md", "See results/PROTOCOL.md")
    question = question.replace("results/PROTOCOL.md", "[the protocol](../evidence/PROTOCOL.md)")
    smollm2 = "evidence/smollm2/PROTOCOL.md"
    return question.replace(f"See {smollm2}", f"See [the protocol](../{smollm2})")


def verdicts() -> str:
    """Each circuit of results/verdicts against its twins and LoRA-SB."""
    labels = {"frozen": "frozen angles", "gaussian": "Gaussian features", "lora_sb": "LoRA-SB"}
    difference = "{effect:+.1f} [{low:+.1f}, {high:+.1f}]"
    rows = []
    for file in sorted(RESULTS.glob("verdicts/*.json")):
        verdict = json.loads(file.read_text(encoding="utf-8"))
        adapters = verdict["adapters"]
        for each in verdict["comparisons"]:
            key = each["against"]
            if key in labels:
                rates = f"{adapters['circuit']['lr']:g}, {adapters[key]['lr']:g}"
                decided = [each["decision"], f"{each['detectable']:.1f}", rates]
                rows.append([f"`{file.stem}`", labels[key], difference.format_map(each), *decided])
    header = ["circuit", "other adapter", "difference [95 % interval]", "decision", "detectable"]
    return table([*header, "learning rates: circuit, other"], rows)


def catalogue() -> str:
    """What a catalogue of compact adapters costs vLLM's resolver."""
    rows = read_json(ROOT / "benchmarks" / "results" / "catalogue.json")
    cells = {
        "start, with importing PEFT": "{start_seconds:.1f} s",
        "first request of all, which loads the base": "{base_seconds:.1f} s",
        "first request for an adapter": "{first_seconds:.1f} s",
        "the same request again": "{again_seconds:.4f} s",
    }
    sizes = {
        "most memory at the start": "start_memory",
        "most memory, with the base and ten adapters": "memory",
        "compact adapters": "bytes",
        "compact adapters on disk, in blocks": "disk_bytes",
        "their frame file": "frame_bytes",
        "an exported adapter in the cache": "export_bytes",
    }
    header = ["adapters", *(f"{row['adapters']:,}" for row in rows)]
    texts = [[label, *map(cell.format_map, rows)] for label, cell in cells.items()]
    texts += [[label, *(size(row[name]) for row in rows)] for label, name in sizes.items()]
    return table(header, texts, numbers=len(rows))


class Table(NamedTuple):
    """How a table is made, and the studies whose rows it has. Of a grid there may be a picture too."""

    make: Callable[[], str | Grid]
    studies: Sequence[str] = ()


TABLES = {
    "equal": Table(comparison_tables.equal, [FINAL]),
    "pairs": Table(lambda: comparison_tables.pairs(FINAL, PAIRS), [FINAL]),
    "later_pairs": Table(lambda: comparison_tables.pairs(FINAL, LATER_PAIRS), [FINAL]),
    "twins": Table(lambda: comparison_tables.pairs(ADAPTERS, TWINS), [ADAPTERS]),
    "pooled": Table(comparison_tables.pooled, ["margins"]),
    "gallery": Table(comparison_tables.gallery, ["margins", ADAPTERS]),
    "verdicts": Table(verdicts, ["verdicts"]),
    "margins": Table(comparison_tables.margins, ["margins"]),
    "sides": Table(comparison_tables.sides, ["margins"]),
    "angles": Table(comparison_tables.angles, ["angles"]),
    "angles_far": Table(comparison_tables.angles_far, ["angles"]),
    "epochs": Table(comparison_tables.epochs, [EPOCHS]),
    "circuit": Table(comparison_tables.circuit, CONTROLS),
    "bits": Table(comparison_tables.bits, ["bits"]),
    "shots": Table(comparison_tables.shots, ["shots", "noise"]),
    "order": Table(suggest_tables.order, [FINAL, "elsewhere"]),
    "regrets": Table(suggest_tables.regrets, ["elsewhere"]),
    "rates": Table(suggest_tables.rates, ["equal-search", "rates"]),
    "powers": Table(suggest_tables.powers, ["equal-search", "rates"]),
    "stored": Table(stored, [FINAL]),
    "signal": Table(smollm2_tables.signal, [SMOLLM2]),
    "circuits": Table(smollm2_tables.circuits, [SMOLLM2]),
    "circuit_losses": Table(smollm2_tables.circuit_losses, [SMOLLM2]),
    "adapters_500": Table(smollm2_tables.adapters_500, [SMOLLM2]),
    "adapters_10000": Table(smollm2_tables.adapters_10000, [SMOLLM2]),
    "pairs_10000": Table(smollm2_tables.pairs_10000, [SMOLLM2]),
    "beside_framed": Table(smollm2_tables.beside_framed, [SMOLLM2]),
    "order_500": Table(suggest_tables.order_500, [SMOLLM2, FINAL]),
    "on_shakespeare": Table(smollm2_tables.on_shakespeare, [SMOLLM2]),
    "order_on_shakespeare": Table(suggest_tables.order_on_shakespeare, [SMOLLM2]),
    "beside_framed_on_shakespeare": Table(smollm2_tables.beside_framed_on_shakespeare, [SMOLLM2]),
    "generated": Table(smollm2_tables.generated, [SMOLLM2]),
    "shared_frames": Table(smollm2_tables.shared_frames, [SMOLLM2]),
    "customers": Table(smollm2_tables.customers, [SMOLLM2]),
    "sentences": Table(smollm2_tables.sentences, [SMOLLM2]),
    "sentence_pairs": Table(smollm2_tables.sentence_pairs, [SMOLLM2]),
    "heads": Table(lambda: smollm2_tables.adapters(stage_4()), [SMOLLM2]),
    "head_pairs": Table(lambda: smollm2_tables.pairs_of(stage_4(), HEADS), [SMOLLM2]),
    "upper": Table(lambda: smollm2_tables.adapters(stage_8()), [SMOLLM2]),
    "upper_pairs": Table(lambda: smollm2_tables.pairs_of(stage_8(), UPPER), [SMOLLM2]),
    "recipe": Table(lambda: smollm2_tables.adapters(recipe()), ["recipes"]),
    "recipe_pairs": Table(lambda: smollm2_tables.pairs_of(recipe(), RECIPE), ["recipes"]),
    "described": Table(
        lambda: smollm2_tables.adapters(described(), "bleu_lowercase", "BLEU"), ["recipes"]
    ),
    "described_pairs": Table(lambda: smollm2_tables.pairs_of(described(), DESCRIBED), ["recipes"]),
    "studies": Table(studies),  # it has its own links
    "ready": Table(ready_adapters.ready),
    "real_adapters": Table(real_model.adapters),
    "first_look": Table(real_model.first_look),
    "real_answers": Table(real_model.answers),
    "encoder": Table(real_model.encoder),
    "real_took": Table(lambda: real_model.took(real_model.stored())),
    "catalogue": Table(catalogue),
    "served_customers": Table(served_customers.customers),
    "served_answers": Table(served_customers.answers),
    "served_times": Table(served_customers.times),
    "served_took": Table(lambda: real_model.took(served_customers.stored())),
}


def filled(text: str) -> str:
    """The page with new tables between its marks."""

    def with_table(mark: re.Match[str]) -> str:
        begin, name, end = mark.groups()
        parts = [begin, str(TABLES[name].make())]
        links = [f"[`{study}`](../results/{study})" for study in TABLES[name].studies]
        if links:
            parts.append(f"Rows: {', '.join(links)}")
        return "\n\n".join([*parts, end])

    return re.sub("(<!-- table: (.*?) -->).*?(<!-- end -->)", with_table, text, flags=re.DOTALL)


def main() -> None:
    for page in map(Path, sys.argv[1:] or PAGES):
        write_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
