"""Fills the tables of docs/findings.md and results/README.md with the values of the published rows.

    python benchmarks/findings.py

`make results` runs it; a test compares the pages with the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import protocol
from qpeft.files import write_text
from qpeft_lab.compare.stats import Difference, paired_difference
from qpeft_lab.compare.study import is_comparable
from qpeft_lab.compare.summary import Result, Summary, load

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
DESIGNS = ("type_R4", "type_R32", "type_R32_final", "own_R16", "own_R32_gains", "plain_L1")
SIGNS = [("budgets", key, f"{key}_signs", "") for key in (*DESIGNS, "own_R16_head", "type_R32_head")]
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
        label = words or summaries[0][to if study == "budgets" else key].label
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


def lora() -> str:
    """The comparisons of `budgets`, and a sentence that counts them."""
    found = list(_qpa_and_lora(summaries_of("budgets")))
    better, worse = (sum(verdict == d.verdict for *_, d in found) for verdict in ("worse", "better"))
    lines = [["setup", "QPA", "LoRA", "QPA minus LoRA"], ["---"] * 4]
    for name, ours, other, difference in found:
        lines.append([SETUPS[name], ours.label, other.label, _difference(difference)])
    counts = f"LoRA is better in {better} of {len(found)} comparisons, and QPA in {worse}."
    return f"{counts}\n\n{_lines(lines)}"


def _qpa_and_lora(summaries: dict[str, Summary]) -> Iterator[tuple[str, Result, Result, Difference]]:
    """QPA and LoRA with 80 to 100 % of its parameters on the same modules: setup, QPA, LoRA, QPA minus LoRA."""
    for name, summary in summaries.items():
        of = {key: [m for m in summary.results if m.method.method == key and m.metric] for key in ("qpa", "lora")}
        for ours, other in product(of["qpa"], of["lora"]):
            same = ours.key.endswith("_head") == other.key.endswith("_head")
            if is_comparable(other.method.trainable / ours.method.trainable) and same:
                yield name, ours, other, mean_difference([summary], ours.key, other.key)


def budgets() -> str:
    """The best adapter with a circuit minus the best without, by budget and setup."""
    summaries = summaries_of("budgets")
    lines = [["parameters, at most", *map(SETUPS.get, summaries)], ["---:", *["---"] * len(summaries)]]
    for limit in (128, 400, 1300, 2600, 5000):
        cells = []
        for summary in summaries.values():
            ok = [m for m in summary.results if m.metric and m.method.rates and not m.has_failures]
            own, other = (
                min((m for m in ok if m.method.trainable <= limit and _has_circuit(m) is has), key=_loss)
                for has in (True, False)
            )
            cells.append(_difference(mean_difference([summary], own.key, other.key)))
        lines.append([f"{limit:,}", *cells])
    return _lines(lines)


def _has_circuit(method: Result) -> bool:
    """Whether it is a design with gates between qubits; with R=2 a circuit has one qubit."""
    return method.method.kind == "quantum" and method.method.role == "main" and method.key != "type_R2"


def equal() -> str:
    """The best adapter of the equal search with a circuit minus the best without, by budget and setup."""
    summaries = summaries_of(FINAL)
    cells = list(product(protocol.BUDGETS, summaries.values()))
    pairs = [tuple(protocol.best(summary, most, has) for has in (True, False)) for most, summary in cells]
    found = [protocol.compared(*pair) for pair in pairs]
    verdicts = protocol.verdicts(found, [protocol.margin(summary) for _, summary in cells])
    texts = [_winners(*row) for row in zip(pairs, found, verdicts, strict=True)]
    lines = [["parameters, at most", *map(SEARCHED.get, summaries)], ["---:", *["---"] * len(summaries)]]
    for most in protocol.BUDGETS:
        lines.append([f"{most:,}", *(text for text, (of, _) in zip(texts, cells, strict=True) if of == most)])
    return _lines(lines)


def _winners(pair: tuple[Result, Result], found: protocol.Paired, verdict: str) -> str:
    ours, other = (one.label.partition(",")[0] for one in pair)
    low, high = found.interval()
    return f"{ours} and {other}: {found.mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"


def best() -> str:
    """The adapters of `budgets` with the highest mean share of the reference's gain on the two texts of stories260K."""
    summaries = [summaries_of("budgets")[name] for name in ("grimm", "wikitext")]
    first = summaries[0]
    lines = [["parameters, at most", "best adapter", "bytes", "Grimm's tales", "WikiText-2"]]
    lines.append(["---:", "---", *["---:"] * 3])
    lines.append(["", "untrained base", "0", *(f"{_loss(summary['none']):.3f}" for summary in summaries)])

    def share(method: Result) -> float:
        ends = [[_loss(s[key]) for key in ("none", method.key, s.study.reference)] for s in summaries]
        return fmean((base - own) / (base - reference) for base, own, reference in ends)

    def usable(method: Result) -> bool:
        ran = all(s[method.key].metric and not s[method.key].has_failures for s in summaries)
        return bool(method.method.rates) and ran

    found = [method for method in first.results if usable(method)]
    on_the_maps = [m for m in found if "lm_head" not in str(m.method.settings.get("target_modules"))]
    for limit in (64, 400, 1300, 5000):
        chosen = [max((m for m in some if m.method.trainable <= limit), key=share) for some in (found, on_the_maps)]
        for place, method in enumerate({m.key: m for m in chosen}.values()):
            asked = f"{limit:,}{', without the head' * place}"
            losses = [f"{_loss(summary[method.key]):.3f}" for summary in summaries]
            lines.append([asked, method.label, f"{method.mean('bytes_stored') or 0:,.0f}", *losses])
    return _lines(lines)


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
    tables = {"circuit": lambda: differences(CIRCUIT, "replacement"), "signs": lambda: differences(SIGNS, "design")}
    tables |= {"bits": lambda: differences(BITS, "angles"), "shots": lambda: differences(SHOTS, "QPA trained with")}
    tables |= {make.__name__: make for make in (sizes, lora, budgets, best, equal, classes, studies)}
    rows = {"circuit": CIRCUIT, "signs": SIGNS, "bits": BITS, "shots": SHOTS}
    of = {name: tuple(dict.fromkeys(study for study, *_ in table)) for name, table in rows.items()}
    of |= {"sizes": ("sizes",), **dict.fromkeys(("lora", "budgets", "best"), ("budgets",)), "equal": (FINAL,)}

    def table(mark: re.Match[str]) -> str:
        links = ", ".join(f"[`{study}`](../results/{study})" for study in of.get(mark[2], ()))
        return "\n\n".join(filter(None, (mark[1], tables[mark[2]](), links and f"Rows: {links}", mark[3])))

    return re.sub("(<!-- table: (.*?) -->).*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
