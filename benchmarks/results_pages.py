"""Generates the pages of docs/results: one page per study over all setups, and the list of studies in the index.

    python benchmarks/results_pages.py          # docs/results/survey.md, controls.md, ..., a table of index.md

Every value on these pages comes from a study.json with its rows, or from the summary.csv and blocks.csv that `qpeft
compare report` writes from them; a test generates the pages again and compares them.
"""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import budget_fronts
import forward_passes_table
from qpeft.compare.analysis.statistics import Difference, compare, paired_difference
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.analysis.targets import SHARES
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.report.format import reached
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import read_rows
from qpeft.compare.study import is_ranked
from qpeft.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SETUPS = {
    "stories-grimm": "stories260K, Grimm's tales, one epoch",
    "stories-grimm-long": "stories260K, Grimm's tales, four epochs",
    "stories-wikitext103": "stories260K, WikiText-103, one epoch",
    "embedded-grimm": "embedded base, Grimm's tales, one epoch",
    "embedded-wikitext103": "embedded base, WikiText-103, one epoch",
    "stories-e2e": "stories260K, E2E",
    "stories-gsm8k": "stories260K, GSM8K",
    "embedded-e2e": "embedded base, E2E",
    "embedded-gsm8k": "embedded base, GSM8K",
    "embedded": "embedded base, NumPy's docstrings",
    "grimm": "stories260K, Grimm's tales",
    "wikitext": "stories260K, WikiText-2's validation file",
    "embedded-wikitext": "embedded base, WikiText-2's validation file",
    "stories-numpy": "stories260K, NumPy's docstrings",
}
STUDIES = (
    "sizes",
    "default-rate",
    "survey",
    "survey-answers",
    "controls",
    "controls-80-steps",
    "feature-source",
    "four-epochs",
    "rank-perplexity",
    "qubits",
    "depth",
    "shots",
    "noise",
    "orthogonal-maps",
    "budgets",
    "forward-passes",
)
BYTES = (512, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)
# adapters with norm gains -> adapters of about the same size without, for the page of `budgets`
WITHOUT_GAINS = {
    "type_R32_final": ("type_R32", "type_R32_r13", "type_lie", "core_R3", "type_R32_head", "core_R3_head"),
    "type_R32_gains": ("own_R16", "own_R32", "core_R6", "uni_1300", "own_R16_head", "core_R6_head", "uni_1300_head"),
    "own_R32_gains": ("own_R32", "own_R32_head"),
    "own_R32_gains_head": ("own_R32_head",),
}
HALVED = "bytes of the weights file, if all were in 16 bits"
# most trainable parameters and most bytes of the weights file, for the page of `budgets`
BUDGETS = {
    "trainable parameters": (64, 128, 250, 400, 750, 1300, 2600, 5000, 10_000, 20_000, 50_000),
    "bytes of the weights file": BYTES,
    HALVED: BYTES,
}
FRONTS = "budgets.svg"
ABOUT_FRONTS = """\
Each mark is an adapter: its mean test loss over five seeds and the 95 % interval. No adapter of at most its size has a
lower mean than one on the dashed line. Adapters that are worse than the untrained base are left out. The reports have
the same charts with names."""
ABOUT_BUDGETS = """\
For each budget the adapter with the lowest mean test loss, and the one with the lowest among those with a circuit
(QPA and Quantum-PEFT, without controls and rotations); their difference, paired by seed, with its 95 % interval. The
intervals are not corrected for the choice of the best of many. In bold: the interval excludes 0. *With a circuit* is
a design, and no evidence for the circuit: compare the controls with fixed signs in the place of its CZ gates. Designs
with circuits were chosen in earlier experiments on these texts; of VeRA and IA3 there is one configuration, of
TinyLoRA and FourierFT there are two.

For nine rows the highest learning rate of the grid was the best in a first run on the embedded base. Their grids were
multiplied by 3, and these rows were run again in every case: IA3, LoRA-GA and the framed adapter with R=4 and r=1
after NumPy's docstrings; both FourierFT, the one framed by the weights, and without the output head the cores 3 x 3
and 6 x 6 and LoRA-SB r=6 after WikiText-2, in a run that is not published. Test losses that were published before
changed by at most 0.016, in both directions. FourierFT needs a wider grid than the other methods. With 8 frequencies
the highest learning rate is the best on WikiText-2 with the embedded base (validation loss 6.19 with 3, 6.25 with
0.9). On Grimm's tales both, and on WikiText-2 with stories260K 60 frequencies, are best with the lowest one; in the
first run a third of it was worse. The two smallest framed adapters (R=2, and R=4 on query and value) and LoRA with
r=3, and with r=3 and 4 on the output head too, were added later. In a first run on Grimm's tales the lowest learning
rate was the best for the two framed ones; their grids were then divided by 3. Now R=2 has its best at the highest,
0.04, on Grimm's tales and on WikiText-2 with the embedded base, by 0.004 and 0.014 in validation loss over a tenth of
it. With 0.12, in first runs of these two cases, it did not improve on the base.

LoRA, Uni-LoRA from 520 parameters (2,600 only there), QPA with 1,000 to 5,000, four framed adapters and some of their
controls were run on the output head too; LoRA-XS, LoRA-SB, LoRA-GA, TinyLoRA, VeRA, FourierFT, IA3 and Quantum-PEFT
without frames were not.

*framed*: inside the leading directions of the loss gradient, which are computed from 64 blocks of the training text
before training; *shared*: one pair of circuits for all matrices of a type; *core*: a trained matrix in such
directions, classical; *signs*: fixed signs instead of CZ gates; *Lie*: rotations of a Lie algebra instead of
circuits; R: `frame_rank`, L: `n_layers`. With R=2 a circuit has one qubit: it is a rotation of a plane. Cores
and Lie rotations are listed with a design of about their size, from which they differ in more than one part.

The bytes are those of the weights file, without a frame file; `--bytes` counts [only its
tensors](../budget.md#stored-bytes). Quantum-PEFT was trained and stored in 16 bits; QPA
and PEFT's adapters are stored in float32. The last tables count half the bytes for these, with the same loss: they were
not trained in 16 bits. Headers with the names of tensors are included: 0.1 KB for Uni-LoRA and for Quantum-PEFT with a
frame file, 0.4 to 1 KB for QPA and for Quantum-PEFT without a file, up to 9 KB for LoRA and 12 KB for TinyLoRA.
TinyLoRA stores singular vectors of the base weights, which could be computed again. A frame file with R=32 takes 377 KB
for stories260K, and 414 KB with the output head; 660 and 930 KB for the embedded base."""
ABOUT_GOAL = """\
Our goal was that in every case, at every budget below 5,000 parameters, an adapter with a circuit is the best, or no
difference from the best is shown (the 95 % interval includes 0). Rotations without gates between qubits are not
counted as circuits: Lie rotations, Quantum-PEFT's other family, and R=2, whose circuits of one qubit are the same as
Lie rotations. If they are counted, the goal is also reached at 64, 400 and 750 on stories260K."""
ABOUT_QPA_AND_LORA = """\
QPA and LoRA with 80 to 100 % of its parameters: the difference, paired by seed, with its 95 % interval, not corrected.
In bold: the interval excludes 0."""
ABOUT_GAINS = """\
Stock servers take no norm gains. Each adapter with trained norm gains, and some without them: the difference, paired by
seed, with its 95 % interval, in nats and as a share of the gain of the adapter with gains. In bold: the interval
excludes 0. The last line of a cell has both sizes. On stories260K they are mostly alike; the embedded base has wider
norms with biases, so there adapters with gains are larger. Adapters on the output head are refused by TRL's vLLM sync,
and by vLLM for some models; Uni-LoRA has to be converted to LoRA."""
ABOUT_FORWARD_PASSES = """\
The goal has two parts: with at most 400 parameters ES reaches at least 80 % of Adam's gain, and its loss is below
that of every control. Controls are here the rows with ES or MeZO that have no circuit. Core, LoRA-SB, LoRA-XS and
TinyLoRA have about as many parameters as the circuit with R=32, the others more.

- *80 %* is shown on all three texts for the framed circuit with R=4 and for TinyLoRA. With R=32 it is shown on
  Grimm's tales only; on WikiText-2 the share is 75 %, and on NumPy's docstrings the interval includes 80 %. For core,
  LoRA-SB and LoRA-XS it is shown on two texts. The core's share is higher than that of the circuit with R=32 by 2.3
  points on Grimm's tales and 3.6 on NumPy's docstrings.
- *Ahead of every control* is shown for no circuit on any text. With R=32 no difference from core and LoRA-SB is shown
  on any text, from norm gains on WikiText-2, and from LoRA-GA on NumPy's docstrings, where norm gains are better by
  0.179. With R=4 the loss is above that of the core by 0.024 and of LoRA-SB by 0.018 on Grimm's tales; on NumPy's
  docstrings above that of the core by 0.047, of norm gains by 0.241 and of LoRA-GA by 0.083.

The circuit with R=32 stores 372 KB with its frames, that with R=4 48 KB, core and LoRA-SB 37 KB. No row replaces the
circuit's CZ gates alone, as [`budgets`](budgets.md) does, so the study does not show whether the gates matter.

*ES*, an antithetic evolution strategy: in each of 312 steps the loss of one batch at the parameters plus and minus
sigma e, for 8 random directions e; the mean of e (loss+ - loss-) / (2 sigma) is the gradient that AdamW uses, and
sigma is the peak learning rate. *MeZO*: SGD with one direction in each of 2,500 steps, and sigma 1e-3, on all
weights; it sees other batches, eight times as many tokens. Both have about 5,000 forward passes of 4 x 128 tokens to
train. Evaluations and the runs that choose the learning rate are not counted. *Adam* (AdamW) has backward passes, and
312 steps with the batches of ES. It reaches the final validation loss of ES, with the four small fitted adapters,
within 60 of its steps (with R=4 on NumPy's docstrings within 165). Frames and initial values fitted on data cost 16
backward passes of 4 blocks before training. In the table of convergence a step is 16 forward passes with ES, two with
MeZO, and one with its backward pass with Adam.

*Gain*: test loss of the untrained base minus that of the adapter, in nats. *Share*: gain with ES or MeZO divided by
the gain of Adam with the same adapter. Both are computed seed by seed; in brackets are 95 % intervals over five
seeds, without a correction for the number of rows. *At least 80%*: yes, the interval of the share is above this goal;
no, it is below; not shown, it includes the goal. The last column is the test loss of the framed circuit with R=32
minus that of the row, both with forward passes: below 0 the circuit is better. A high share of a small gain can be a
high loss: compare the gains.

The grids are coarse: 0.3, 1 and 3 times a middle. If the best one was at an edge, it became the middle of a new grid;
so no row has its best at an edge. This was so for six rows on Grimm's tales, for eleven on WikiText-2, whose grids
began with the middles of Grimm's tales, and for six on NumPy's docstrings, whose grids began with those of
WikiText-2. The study file has the middles for Grimm's tales, and `lr_base` in `study.json` those of each text.

The evolution strategy and MeZO are not part of qpeft. Commit ed3a7028e58f has them, `--optimizer es` and `mezo`, with
the study file of the commands below; the tables and the report were written with it. `benchmarks/optimizer_memory.py`
in that commit measured the peak memory of two training steps with 248 (embedded base: 164) parameters in random
frames (float32, a CPU, the whole process): GPT-2 small's shapes 1,524 MB with ES, 1,477 MB for inference, 2,357 MB
with AdamW; embedded base 646, 620 and 658 MB. Fitting frames on data needs the memory of backward passes once."""
SCORES = {"bleu": "BLEU", "nist": "NIST", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
LINK = {"summary.md": "tables", "report.html": "report"}
LIST = "% table: studies\n"  # before the table of index.md
BEST = "<!-- table: budgets -->\n"  # before the table of README.md
IN_README = {"limits": (64, 130, 400, 1300, 5000, 50_000), "setups": ("grimm", "wikitext")}


def main() -> None:
    for study in STUDIES:
        write_text(RESULTS / f"{study}.md", page(study))
    write_text(RESULTS / FRONTS, fronts())
    for file, change in ((RESULTS / "index.md", index), (ROOT / "README.md", readme)):
        write_text(file, change(file.read_text(encoding="utf-8")))


def fronts() -> str:
    """The picture of the page of `budgets`."""
    folders = {name: RESULTS / name / "budgets" for name in SETUPS}
    found = {name: folder for name, folder in folders.items() if folder.is_dir()}
    return budget_fronts.draw({SETUPS[name]: summarise(read_study(f), read_rows(f)) for name, f in found.items()})


def readme(text: str) -> str:
    """README.md with its table: the best adapters of `budgets` within some numbers of parameters."""
    folders = [RESULTS / name / "budgets" for name in IN_README["setups"]]
    summaries = [summarise(read_study(folder), read_rows(folder)) for folder in folders]
    first = summaries[0]
    places = [SETUPS[name].partition(", ")[2] for name in IN_README["setups"]]
    head = ["parameters, at most", "best adapter", "parameters", "weights file, bytes", *places]
    lines = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]

    def losses(key: str) -> list[str]:
        return [f"{stats.mean:.3f}" for summary in summaries if (stats := summary[key].metric)]

    def share(method: MethodSummary) -> float:
        """The mean share of the gain of the reference."""
        ends = [[s[key].metric for key in ("none", method.key, s.study.reference)] for s in summaries]
        return fmean((a.mean - b.mean) / (a.mean - c.mean) for a, b, c in ends if a and b and c)

    usable = [
        method
        for method in first.methods
        if method.is_trained and all(s[method.key].metric and not s[method.key].has_failures for s in summaries)
    ]
    lines.append(["", "base model", "0", "0", *losses("none")])
    on_the_maps = [m for m in usable if "lm_head" not in str(m.settings.get("target_modules"))]
    for limit in IN_README["limits"]:
        found = [max((m for m in some if m.trainable <= limit), key=share) for some in (usable, on_the_maps)]
        for place, best in enumerate(dict.fromkeys(m.key for m in found)):
            method = first[best]
            size = [f"{method.trainable:,}", f"{method.bytes_stored or 0:,.0f}"]
            asked = f"{limit:,}{', without the output head' * place}"
            lines.append([asked, method.label, *size, *losses(best)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, _, after = text.partition(BEST)
    return before + BEST + "\n" + table + "\n\n" + after.lstrip("\n").partition("\n\n")[2]


def index(text: str) -> str:
    """The index with its table of studies: every folder with a study.json, those with a page first."""
    runs: dict[str, list[str]] = {name: [] for name in STUDIES}
    titles = {}
    for path in sorted(RESULTS.glob("*/*/study.json")):
        study, place = json.loads(path.read_text(encoding="utf-8")), path.parent.relative_to(RESULTS)
        titles[place.name] = study["title"]
        link = f"[{place.parent}]({place.as_posix()}/summary.md)"
        runs.setdefault(place.name, []).append(f"{link}, {len(study['seeds'])} seeds")
    lines = ["| study | results |", "| --- | --- |"]
    for name, found in runs.items():
        title = f"[{titles[name]}]({name}.md)" if name in STUDIES else titles[name]
        lines.append(f"| {title} | {'; '.join(found)} |")
    before, _, after = text.partition(LIST)
    return before + LIST + "\n" + "\n".join(lines) + "\n\n" + after.lstrip("\n").partition("\n\n")[2]


def page(study: str) -> str:
    """The page of a study: question, answers, table of differences, convergence, equal-budget blocks, links."""
    found = {name: _read(RESULTS / name / study) for name in SETUPS if (RESULTS / name / study).is_dir()}
    summaries = {
        name: summarise(read_study(RESULTS / name / study), read_rows(RESULTS / name / study)) for name in found
    }
    described = next(iter(found.values()))[0]
    parts = [
        f"# {described['title']}",
        described["question"],
        _where(study, found),
        *_answers(summaries),
        *(_of_budgets(summaries) if study == "budgets" else []),
        *(_forward_passes(summaries) if study == "forward-passes" else []),
        "## Test loss",
        f"Test loss in nats per token, mean ± standard deviation over {len(described['seeds'])} seeds; below it the "
        f"difference from {_label(described, described['reference'])}, paired by seed, with its 95 % interval. "
        "In bold: better or worse, after Holm's correction.",
        _methods(found),
        *_controls(found),
        *_blocks(found),
        *_over_all(summaries),
        *_scores(summaries),
        *_convergence(summaries),
        "## The commands",
        *(["In commit ed3a7028e58f:"] if study == "forward-passes" else []),
        "\n".join(["```sh", *(study_json["command"] for study_json, _, _ in found.values()), "```"]),
        "\n".join(["```{toctree}", ":hidden:", "", *(f"{name}/{study}/summary" for name in found), "```"]),
    ]
    return "\n\n".join(parts) + "\n"


def _read(folder: Path) -> tuple[dict, dict[str, dict[str, str]], list[dict[str, str]]]:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        methods = {line["key"]: line for line in csv.DictReader(file)}
    with (folder / "blocks.csv").open(encoding="utf-8", newline="") as file:
        return study, methods, list(csv.DictReader(file))


def _where(study: str, found: dict) -> str:
    links = {name: ", ".join(f"[{word}]({name}/{study}/{file})" for file, word in LINK.items()) for name in found}
    return "\n".join(f"- {SETUPS[name]}: {links[name]}" for name in found)


def _answers(summaries: dict[str, Summary]) -> list[str]:
    """The sentences at the top of each report."""
    lines = [f"- **{SETUPS[name]}.** {' '.join(summary.headlines)}" for name, summary in summaries.items()]
    return ["## Answers", "Values in parentheses are test losses in nats per token.", "\n".join(lines)]


def _over_all(summaries: dict[str, Summary]) -> list[str]:
    """The differences of controls and blocks with the mean over all setups in the place of one setup's loss."""
    pairs = set.intersection(*(_pairs(summary) for summary in summaries.values()))
    if len(summaries) < 2 or not pairs:
        return []
    described, *_ = summaries.values()
    in_order = sorted(pairs, key=[(m.key, to.key) for m in described.methods for to in described.methods].index)
    means = {key: _mean_by_seed([s[key] for s in summaries.values()]) for pair in in_order for key in pair}
    failed = {m.key for summary in summaries.values() for m in summary.methods if m.has_failures}
    lines = [["method", "compared with", "difference"], ["---"] * 3]
    for (key, to), found in compare(in_order, means, failed, summaries[next(iter(summaries))].lower_is_better).items():
        row = {f"all.{name}": str(getattr(found, name)) for name in ("mean", "low", "high", "verdict")}
        label = described[key].label.partition(",")[0] if "@" in key else described[key].label
        lines.append([label, described[to].label, _difference(row, "all").removesuffix("<br>")])
    about = (
        f"The same differences, averaged over the {len(summaries)} setups seed by seed, with the interval of that mean "
        f"over the seeds. In bold: better or worse, after Holm's correction over the {len(lines) - 2} rows. The setups "
        "are not a sample of all models and texts."
    )
    return ["## Over all setups", about, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _of_budgets(summaries: dict[str, Summary]) -> list[str]:
    """What only the page of `budgets` has."""
    return [*_best_within(summaries), *_qpa_and_lora(summaries), *_without_gains(summaries)]


def _best_within(summaries: dict[str, Summary]) -> list[str]:
    """The best adapter of all, and the best with a circuit, for each of `BUDGETS` and each setup."""
    parts = ["## Best within a budget", f"![Test loss against size]({FRONTS})", ABOUT_FRONTS]
    parts += [ABOUT_BUDGETS, ABOUT_GOAL, _goal(summaries)]
    for unit, limits in BUDGETS.items():
        for name, summary in summaries.items():
            head = [f"{unit}, at most", "best of all", "best with a circuit", "circuit minus best"]
            lines = [head, ["---:", "---", "---", "---"]]
            lines += [found for limit in limits if (found := _best_of(summary, limit, unit))]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            parts += [f"### {unit.capitalize()}: {SETUPS[name]}", table]
    return parts


def _goal(summaries: dict[str, Summary]) -> str:
    """Whether the best adapter has a circuit, for the budgets in parameters that the goal has and each setup."""
    unit = "trainable parameters"
    lines = [[f"{unit}, at most", *(SETUPS[name] for name in summaries)], ["---:", *["---"] * len(summaries)]]
    for limit in (one for one in BUDGETS[unit] if one < 5000):
        lines.append([f"{limit:,}", *(_answer(_best_and_own(summary, limit, unit)) for summary in summaries.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _answer(found: Best | None) -> str:
    if found is None:
        return "no adapter is as small"
    if found.own is None:
        return "no circuit of this size was run"
    if found.difference is None:
        return "a circuit is the best"
    if found.difference.verdict == "no difference shown":
        return "no difference shown"
    return f"**{found.best.label}** is better by {found.difference.mean:.3f}"


class Best(NamedTuple):
    """Of the adapters within a budget, the best and the best with a circuit; the latter minus the former."""

    best: MethodSummary
    own: MethodSummary | None
    difference: Difference | None  # None if they are the same


def _best_and_own(summary: Summary, limit: int, unit: str) -> Best | None:
    """None if no adapter is as small."""
    ok = [m for m in summary.methods if m.metric and m.is_trained and not m.has_failures]
    within = [m for m in ok if (found := _size(m, unit)) is not None and found <= limit]
    circuits = [m for m in within if budget_fronts.has_circuit(m)]
    if not within:
        return None
    best, own = min(within, key=_loss), min(circuits, key=_loss, default=None)
    if own is None or own is best:
        return Best(best, own, None)
    assert own.metric is not None
    assert best.metric is not None
    return Best(best, own, paired_difference(own.metric.values, best.metric.values, best.key, lower_is_better=True))


def _size(method: MethodSummary, unit: str) -> float | None:
    if unit == "trainable parameters":
        return method.trainable
    if method.bytes_stored is None:
        return None
    return method.bytes_stored / (2 if unit == HALVED and method.method != "quantum_peft" else 1)


def _loss(method: MethodSummary) -> float:
    assert method.metric is not None
    return method.metric.mean


def _best_of(summary: Summary, limit: int, unit: str) -> list[str] | None:
    """A line of `_best_within`; None if no adapter is as small."""

    def about(method: MethodSummary) -> str:
        return f"{method.label}<br>{_loss(method):.3f}, {_size(method, unit):,.0f}"

    if (found := _best_and_own(summary, limit, unit)) is None:
        return None
    if found.own is None:
        return [f"{limit:,}", about(found.best), "none", ""]
    if found.difference is None:
        return [f"{limit:,}", about(found.best), "the same", ""]
    row = {f"all.{name}": str(getattr(found.difference, name)) for name in ("mean", "low", "high", "verdict")}
    return [f"{limit:,}", about(found.best), about(found.own), _difference(row, "all").removesuffix("<br>")]


def _qpa_and_lora(summaries: dict[str, Summary]) -> list[str]:
    """QPA and LoRA with 80 to 100 % of its parameters on the same modules."""
    lines = [["", "QPA", "LoRA", "QPA minus LoRA"], ["---"] * 4]
    for name, summary in summaries.items():
        of = {key: [m for m in summary.methods if m.method == key] for key in ("qpa", "lora")}
        for ours, lora in product(of["qpa"], of["lora"]):
            same = [one.key.endswith("_head") for one in (ours, lora)]
            if not is_ranked(lora.trainable / ours.trainable) or len(set(same)) == 2:
                continue
            assert ours.metric is not None
            assert lora.metric is not None
            found = paired_difference(ours.metric.values, lora.metric.values, lora.key, lower_is_better=True)
            row = {f"all.{field}": str(getattr(found, field)) for field in ("mean", "low", "high", "verdict")}
            cells = [f"{m.label}<br>{_loss(m):.3f}, {m.trainable:,}" for m in (ours, lora)]
            lines.append([SETUPS[name], *cells, _difference(row, "all").removesuffix("<br>")])
    return ["## QPA and LoRA of its size", ABOUT_QPA_AND_LORA, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _without_gains(summaries: dict[str, Summary]) -> list[str]:
    """Adapters that a LoRA file can hold, compared with those that train norm gains as well."""
    head = ["with gains", "without", *(SETUPS[name] for name in summaries)]
    lines = [head, ["---"] * len(head)]
    described = next(iter(summaries.values()))
    for key, others in WITHOUT_GAINS.items():
        for other in others:
            cells = [_substitute(summary, key, other) for summary in summaries.values()]
            lines.append([described[key].label, described[other].label, *cells])
    return ["## Without norm gains", ABOUT_GAINS, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _forward_passes(summaries: dict[str, Summary]) -> list[str]:
    """The share of AdamW's gain that each adapter reaches without backward passes."""
    parts = ["## Which share of the gain remains", ABOUT_FORWARD_PASSES]
    for name, summary in summaries.items():
        parts += [f"### {SETUPS[name]}", "\n".join(forward_passes_table.tables(summary)).rstrip()]
    return parts


def _substitute(summary: Summary, key: str, other: str) -> str:
    with_gains, without, base = summary[key].metric, summary[other].metric, summary["none"].metric
    if with_gains is None or without is None or base is None or summary[other].has_failures:
        return "failed"
    found = paired_difference(without.values, with_gains.values, key, lower_is_better=True)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    gain = base.mean - with_gains.mean
    mean, low, high = (f"{100 * value / gain:+.1f}" for value in (found.mean, found.low, found.high))
    shares = f"{mean} % [{low}, {high}]"
    row = {f"all.{name}": str(getattr(found, name)) for name in ("mean", "low", "high", "verdict")}
    size = f"{summary[other].trainable:,} instead of {summary[key].trainable:,}"
    return f"{_difference(row, 'all')}{shares}<br>{size}"


def _pairs(summary: Summary) -> set[tuple[str, str]]:
    """Each control with its method, and each ranked method of a block with the one whose size it has."""
    in_blocks = {(m.key, block.of) for block in summary.blocks for m in block.members if m.rank and m.key != block.of}
    return in_blocks | {(method.key, method.against) for method in summary.methods if method.against}


def _mean_by_seed(methods: list[MethodSummary]) -> dict[int, float]:
    """The mean over setups of the metric, for the seeds that all setups have."""
    values = [method.metric.values for method in methods if method.metric is not None]
    return {seed: fmean(one[seed] for one in values) for seed in set.intersection(*map(set, values))}


def _scores(summaries: dict[str, Summary]) -> list[str]:
    """Scores of the generated texts, a table per setup."""
    parts: list[str] = []
    for setup, summary in summaries.items():
        if not any(f"quality.{name}" in method.measurements for method in summary.methods for name in SCORES):
            continue
        lines = [["method", *SCORES.values()], ["---", *["---:"] * len(SCORES)]]
        lines += [[method.label, *(_score(method, name) for name in SCORES)] for method in summary.methods]
        parts += [f"### {SETUPS[setup]}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    about = (
        "Texts generated for prompts of the test data, the most likely token each time, scored against all answers "
        "that the data has for the prompt ([scores](../generated_texts.md#scores)): mean ± standard deviation over "
        "seeds. BLEU, chrF and ROUGE from 0 to 100."
    )
    return ["## Generated texts", about, *parts] if parts else []


def _score(method: MethodSummary, name: str) -> str:
    found = method.measurements.get(f"quality.{name}")
    if found is None:
        return ""
    factor = 100 if name.startswith("rouge") else 1
    sd = f" ± {factor * found.sd:.1f}" if found.sd is not None else ""
    return f"{factor * found.mean:.1f}{sd}"


def _convergence(summaries: dict[str, Summary]) -> list[str]:
    """Steps to shares of the reference's gain."""
    described = next(iter(summaries.values()))
    head = ["method", *(SETUPS[name] for name in summaries)]
    lines = [head, ["---"] * len(head)]
    for method in (method for method in described.methods if method.is_trained):
        label, of = method.label, method.key.partition("@")[2]
        if method.role == "equal_budget":  # sizes differ between setups
            label = f"{label.partition(',')[0]}, at the size of {described[of].label}"
        found = [summary[method.key].steps_to for summary in summaries.values()]
        lines.append([label, *(" / ".join(reached(steps.get(share)) for share in SHARES) for steps in found)])
    reference = described[described.study.reference]
    curves = [curve for s in summaries.values() for method in s.rows.values() for curve in method.curves.values()]
    steps = [[point[0] for point in curve if point[2] is not None] for curve in curves]
    evaluated = sorted({found[1] for found in steps if len(found) > 1})  # the untrained base has one
    about = (
        f"Median steps to 50, 80 and 95 % of the gain of {reference.label}: its mean initial validation loss minus its "
        "mean final one ([definition](../comparison.md#what-is-equal-and-what-is-measured)). The loss was evaluated "
        f"every {' or '.join(map(str, evaluated))} steps. 40 (4/5): four of five seeds reached it; > 80 (2/5): two "
        "did; > 80: none."
    )
    return ["## Convergence", about, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _methods(found: dict) -> str:
    keys = [m["key"] for m in next(iter(found.values()))[0]["methods"] if m["role"] == "main"]
    return _table(found, keys, "delta")


def _controls(found: dict) -> list[str]:
    controls = [m for m in next(iter(found.values()))[0]["methods"] if m["against"]]
    if not controls:
        return []
    about = "Each control with the method to which it belongs. Differences are control minus method."
    return ["## Controls", about, _table(found, [m["key"] for m in controls], "control")]


def _table(found: dict, keys: list[str], prefix: str) -> str:
    head = ["method", *(SETUPS[name] for name in found)]
    lines = [head, ["---"] * len(head)]
    for key in keys:
        rows = [methods[key] for _, methods, _ in found.values()]
        of = f" (of {_label(next(iter(found.values()))[0], rows[0]['control.to'])})" if prefix == "control" else ""
        lines.append([rows[0]["label"] + of, *(_cell(row, prefix) for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, str], prefix: str, metric: str = "metric") -> str:
    mean, sd = (float(row[f"{metric}.{name}"] or 0) for name in ("mean", "sd"))
    trained = f"{int(row['trainable']):,} trained" if int(row["trainable"]) else "nothing trained"
    missing = int(row.get("seeds_planned", 0)) - int(row.get("seeds_ok", 0))  # lines of blocks have no such numbers
    failed = f"{missing} of {row['seeds_planned']} runs diverged or failed<br>" if missing else ""
    return f"{mean:.3f} ± {sd:.3f}<br>{failed}{_difference(row, prefix)}{trained}"


def _difference(row: dict[str, str], prefix: str) -> str:
    if not row[f"{prefix}.low"]:  # fewer than two seeds
        return ""
    mean, low, high = (float(row[f"{prefix}.{name}"]) for name in ("mean", "low", "high"))
    digits = 3 if max(abs(low), abs(high)) >= 0.01 else 5
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{text if row[f'{prefix}.verdict'] == 'no difference shown' else f'**{text}**'}<br>"


def _blocks(found: dict) -> list[str]:
    parts = []
    for of in dict.fromkeys(line["of"] for _, _, lines in found.values() for line in lines):
        label = _label(next(iter(found.values()))[0], of)
        parts += [
            f"## With as many trainable parameters as {label}",
            f"Differences are relative to {label}. A method with less than 80 % or more than 100 % of its trainable "
            "parameters is not ranked.",
            _block(found, of),
        ]
    return parts


def _block(found: dict, of: str) -> str:
    head = ["method", *(SETUPS[name] for name in found)]
    lines = [head, ["---"] * len(head)]
    keys = dict.fromkeys(line["key"] for _, _, rows in found.values() for line in rows if line["of"] == of)
    for key in keys:
        cells = []
        for _, _, rows in found.values():
            row = next(line for line in rows if (line["of"], line["key"]) == (of, key))
            place = f"rank {row['rank']}" if row["rank"] else f"not ranked ({100 * float(row['ratio']):.0f} %)"
            cells.append(f"{_cell(row, 'delta')}, {place}")
        label = _label(next(iter(found.values()))[0], key).partition(",")[0]  # sizes differ between setups
        lines.append([label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _label(study: dict, key: str) -> str:
    return next(method["label"] for method in study["methods"] if method["key"] == key)


if __name__ == "__main__":
    main()
