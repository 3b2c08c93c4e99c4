"""Fills the tables of docs/findings.md and results/README.md with the values of the published rows.

    python benchmarks/findings.py

`make results` runs it; a test compares the pages with the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import protocol
import qpeft
from qpeft.files import write_text
from qpeft_lab.compare.stats import Difference, paired_difference
from qpeft_lab.compare.summary import Result, Summary, load
from qpeft_lab.demo import base_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGES = (ROOT / "docs" / "findings.md", RESULTS / "README.md")
SETUPS = {  # of the study `budgets`, in the order of the tables
    "embedded": "embedded base, NumPy's docstrings",
    "grimm": "stories260K, Grimm's tales",
    "wikitext": "stories260K, WikiText-2",
    "embedded-wikitext": "embedded base, WikiText-2",
}
FINAL = "equal-search-final"
BYTES = (1_000, 2_000, 6_000, 25_000)
STORIES = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8}
STORIES |= {"num_key_value_heads": 4, "vocab_size": 512}  # of stories260K
PAIRS = {  # by the name of the table: the study, and pairs of its adapters
    "pairs": (
        FINAL,
        [
            *(("qpa_1300", "uni_1300"), ("qpa_5000", "uni_5000"), ("qpa_1300", "lora_1300"), ("qpa_5000", "lora_5000")),
            *((f"framed_{budget}", f"signs_{budget}") for budget in (128, 400, 1300)),
            ("framed_1300", "uni_1300"),
        ],
    ),
}
SEARCHED = {  # its setups, in the order of the tables
    "embedded-numpy": "embedded base, NumPy's documentation",
    "embedded-shakespeare": "embedded base, Shakespeare",
    "stories-grimm": "stories260K, Grimm's tales",
    "stories-shakespeare": "stories260K, Shakespeare",
}
CIRCUIT = [  # study, its method, the method with the replacement, in words
    ("controls", "qpa", "qpa_frozen", "QPA: the circuit's angles are frozen"),
    ("controls", "qpa", "qpa_random", "QPA: fixed Gaussian values instead of the circuit"),
    ("controls", "qpa_paper", "paper_none", "QPA, the paper's network: no circuit"),
    ("controls", "quantum_peft", "signs", "Quantum-PEFT: random signs instead of CZ gates"),
    ("controls", "quantum_peft", "product", "Quantum-PEFT: nothing instead of CZ gates"),
    ("controls", "qaa", "givens", "QAA: trained Givens rotations instead of the circuit"),
    ("controls", "qaa", "qaa_frozen", "QAA: the circuit's angles are frozen"),
    ("survey-answers", "qaa", "lora_sites@qaa", "QAA: LoRA on the same modules, four cases"),
]
BITS = [("bits", "float32", key, "") for key in ("bits_8", "bits_4", "bits_3", "bits_2", "shared")]
SHOTS = [("shots", "exact", f"shots_{n}", "") for n in (65536, 8192, 1024)]
SHOTS += [("noise", "exact", f"noise_{p}", "") for p in (0.001, 0.01)]
IMAGES = {"digits": "digits", "cifar10": "CIFAR-10, five classes", "sst2": "film reviews (SST-2)"}


def summaries_of(study: str) -> dict[str, Summary]:
    """The results of a study by setup, those of `SETUPS` in their order."""
    order = [*SETUPS, *SEARCHED]
    files = {file.name.partition(".")[0]: file for file in sorted((RESULTS / study).iterdir())}
    names = sorted(files, key=lambda name: order.index(name) if name in order else len(order))
    return {name: load(files[name]) for name in names}


def mean_difference(summaries: Iterable[Summary], key: str, to: str) -> Difference:
    """`key` minus `to`, averaged over the setups seed by seed."""
    values = [_mean_by_seed([summary[name] for summary in summaries]) for name in (key, to)]
    found = paired_difference(*values, to, lower_is_better=True)
    assert found is not None
    return found


def _mean_by_seed(methods: list[Result]) -> dict[int, float]:
    """The mean over setups of the metric, for the seeds that all setups have."""
    values = [method.metric.values for method in methods if method.metric is not None]
    return {seed: fmean(one[seed] for one in values) for seed in set.intersection(*map(set, values))}


def differences(rows: list[tuple[str, str, str, str]], what: str) -> str:
    """A line per row: what was replaced, the difference, and its interval as a share of the reference's gain."""
    lines = [[what, "difference", "share of the gain"], ["---"] * 3]
    for study, to, key, words in rows:
        summaries = [s for name, s in summaries_of(study).items() if study != "bits" or name == "embedded"]
        found = mean_difference(summaries, key, to)
        gain = fmean(_loss(s["none"]) - _loss(s.reference) for s in summaries)
        low, high = (f"{100 * (value or 0) / gain:+.1f}" for value in (found.low, found.high))
        label = words or summaries[0][key].label
        size = f", {summaries[0][key].mean('bytes_stored'):,.0f} bytes" if study == "bits" else ""
        lines.append([label + size, _difference(found), f"{low} to {high} %"])
    return _lines(lines)


def sizes() -> str:
    lines = [["parameters", "frozen angles", "Gaussian values", "Uni-LoRA of its size"], ["---:", *["---"] * 3]]
    summaries = summaries_of("sizes").values()
    for size in ("2k", "6k", "23k", "80k"):
        others = (f"frozen_{size}", f"random_{size}", f"uni_lora@qpa_{size}")
        found = (mean_difference(summaries, other, f"qpa_{size}") for other in others)
        lines.append([size.replace("k", ",000"), *map(_difference, found)])
    return _lines(lines)


def equal() -> str:
    """The best adapter of the equal search with a circuit minus the best without, by budget and setup."""
    rows = []
    for most in protocol.BUDGETS:
        found = [tuple(protocol.best(s, most, has) for has in (True, False)) for s in summaries_of(FINAL).values()]
        rows.append((f"{most:,}", found, [f"{' and '.join(map(_name, pair))}: " for pair in found]))
    return _compared("parameters, at most", FINAL, rows)


def pairs(study: str, keys: list[tuple[str, str]]) -> str:
    """Pairs of adapters of a study."""
    rows = []
    for both in keys:
        found = [tuple(summary[key] for key in both) for summary in summaries_of(study).values()]
        budget = both[0].rpartition("_")[2]
        label = " minus ".join(map(_name, found[0])) + (f", {int(budget):,}" if budget.isdigit() else "")
        rows.append((label, found, [""] * len(found)))
    return _compared("comparison", study, rows)


def _compared(what: str, study: str, rows: list[tuple[str, list[tuple[Result, ...]], list[str]]]) -> str:
    """A line per row, with a comparison for each setup and words before it; the verdicts are of one family."""
    summaries = summaries_of(study)
    found = [protocol.compared(*pair) for _, pairs, _ in rows for pair in pairs]
    margins = [protocol.margin(summary) for summary in summaries.values()] * len(rows)
    texts = iter(map(_cell, found, protocol.verdicts(found, margins)))
    lines = [[what, *(SEARCHED.get(name, name) for name in summaries)], ["---"] * (1 + len(summaries))]
    lines += [[label, *(words + next(texts) for words in before)] for label, _, before in rows]
    return _lines(lines)


def _cell(found: protocol.Paired, verdict: str) -> str:
    low, high = found.interval()
    return f"{found.mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"


def _name(found: Result) -> str:
    """Its label without the budget and the sizes."""
    return re.sub(r", [\d,]+ [abc]\b.*", "", found.label)


def stored() -> str:
    """The best adapter by the bytes that it takes with its share of a frame file, and its loss."""
    summaries = summaries_of(FINAL)
    lines = [["adapters of the base", *(f"{limit:,} bytes each" for limit in BYTES)], ["---:", *["---"] * len(BYTES)]]
    for n_adapters in (1, 10, 100, 1000):
        cells = []
        for limit in BYTES:
            shares = {
                found.key: fmean(_share(summary, summary[found.key]) for summary in summaries.values())
                for found in next(iter(summaries.values())).results
                if found.method.rates and all(_bytes(s, s[found.key], n_adapters) <= limit for s in summaries.values())
            }
            key = max(shares, key=lambda key: shares[key])
            cells.append(f"{_name(next(iter(summaries.values()))[key])}, {100 * shares[key]:.0f} %")
        lines.append([f"{n_adapters:,}", *cells])
    return _lines(lines)


def _share(summary: Summary, found: Result) -> float:
    """Of the gain of LoRA within the largest budget, in validation loss."""
    base, reference = (summary[key].mean("valid_loss") or 0 for key in ("none", f"lora_{protocol.BUDGETS[-1]}"))
    return (base - (found.mean("valid_loss") or 0)) / (base - reference)


def _bytes(summary: Summary, found: Result, n_adapters: int) -> float:
    """Of the stored tensors, with the share of a frame file that so many adapters have in common."""
    frames = 0
    if found.method.settings.get("frame") in ("gradient", "sign"):
        frames = _frame_bytes(Path(summary.study.run.model).name, json.dumps(found.method.settings))
    return (found.mean("bytes_stored") or 0) + frames / n_adapters


@cache
def _frame_bytes(base: str, settings: str) -> int:
    shape = AutoConfig.from_pretrained(base_path()) if base == "base" else AutoConfig.for_model("llama", **STORIES)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    config = {"target_modules": "all-linear", **json.loads(settings), "task_type": "CAUSAL_LM"}
    return qpeft.plan(model, qpeft.QuantumPeftConfig(**config)).sizes["frame_bytes"]


def classes() -> str:
    stored = json.loads((ROOT / "benchmarks" / "results" / "classification.json").read_text(encoding="utf-8"))
    found = [{row["row"].replace("r=32", "r=8"): row for row in stored[task]} for task in IMAGES]
    lines = [["adapter", *IMAGES.values()], ["---"] * 4]
    for name in list(found[-1])[1:]:
        cells = (f"{100 * task[name]['difference']:+.1f} ± {100 * task[name]['reach']:.1f}" for task in found)
        lines.append([name.replace(" r=8", ""), *cells])
    return _lines(lines)


def studies() -> str:
    """Every study with its question, and its rows by setup."""
    lines = [["study", "question", "rows"], ["---"] * 3]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        summaries = summaries_of(folder.name)
        links = ", ".join(f"[{setup}]({folder.name}/{setup}.jsonl.xz)" for setup in summaries)
        lines.append([f"`{folder.name}`", next(iter(summaries.values())).study.question, links])
    return _lines(lines)


def _loss(method: Result) -> float:
    assert method.metric is not None
    return method.metric.mean


def _difference(found: Difference) -> str:
    low, high = found.low or 0.0, found.high or 0.0
    is_clear = found.verdict != "no difference shown"
    is_small = max(abs(low), abs(high)) < 0.01 or (is_clear and min(abs(low), abs(high)) < 0.0005)  # not "+0.000"
    digits = 5 if is_small else 3
    text = f"{found.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if is_clear else text


def _lines(lines: list[list[str]]) -> str:
    """A table in Markdown; the second line is the ruler."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str) -> str:
    """The page with new tables between its marks."""
    tables = {"circuit": lambda: differences(CIRCUIT, "replacement")}
    tables |= {"bits": lambda: differences(BITS, "angles"), "shots": lambda: differences(SHOTS, "QPA trained with")}
    tables |= {make.__name__: make for make in (sizes, equal, stored, classes, studies)}
    tables |= {name: partial(pairs, *asked) for name, asked in PAIRS.items()}
    rows = {"circuit": CIRCUIT, "bits": BITS, "shots": SHOTS}
    of = {name: tuple(dict.fromkeys(study for study, *_ in table)) for name, table in rows.items()}
    of |= {"sizes": ("sizes",), "equal": (FINAL,), "stored": (FINAL,)}
    of |= {name: (study,) for name, (study, _) in PAIRS.items()}

    def table(mark: re.Match[str]) -> str:
        links = ", ".join(f"[`{study}`](../results/{study})" for study in of.get(mark[2], ()))
        return "\n\n".join(filter(None, (mark[1], tables[mark[2]](), links and f"Rows: {links}", mark[3])))

    return re.sub("(<!-- table: (.*?) -->).*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
