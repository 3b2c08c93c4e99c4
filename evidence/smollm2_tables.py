"""The tables of the evidence on real models, whose rules are in evidence/smollm2/PROTOCOL.md.

Intervals are over seeds alone, as that protocol says; the margin is 5 per cent of the unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import suggest_evidence
from comparison_tables import Cell, Grid, Line, Pair
from comparisons import mean_loss
from qpeft_lab.compare.paired import Paired
from qpeft_lab.compare.stats import LEVEL, holm
from qpeft_lab.compare.summary import Result, Summary
from table_text import table
from winners import RESULTS, summaries_of

SMOLLM2 = "smollm2"
TEXTS = {"e2e": "E2E references", "shakespeare": "Shakespeare"}
MARGIN = 5.0  # per cent of the unit
DIFFERENCE = ["loss of", "difference, per cent of LoRA's gain"]  # the header of such a table
SENTENCES = [
    Pair("framed", "signs"),
    Pair("qpa", "qpa_frozen"),
    Pair("framed", "head"),
    Pair("framed", "uni"),
    Pair("framed", "sb"),
    Pair("qpa", "head"),
    Pair("qpa", "uni"),
    Pair("qpa", "sb"),
]
RECIPE = [Pair("qpa", other) for other in ("lora", "lora_r2", "qpa_none")]
DESCRIBED = [
    Pair(ours, other) for ours in ("quantum_peft", "pauli") for other in ("lora", "lora_r1")
]
HEADS = [
    *(Pair("qpa", other) for other in ("lora_r4", "lora_r2", "uni", "qpa_frozen", "qpa_random")),
    *(Pair(ours, "qpa") for ours in ("qpa_paper", "qpa_10", "qpa_50")),
]
RATES = (1, 2, 3, 4)  # the ends of the keys of stage 1
TWINS = {"signs": "framed signs", "lie": "framed Lie rotations"}
CUSTOMERS = {  # the texts of stage 3
    "e2e": "E2E references",
    "gsm8k": "GSM8K",
    "grimm": "Grimm's tales",
    "stories": "TinyStories",
    "numpy": "NumPy's documentation",
    "python": "Python's documentation",
}
MOST_LOST = 20.0  # per cent of the gain in the own frame: falsifier 4 of the protocol
ORDERED = {  # the adapters of stage 2, by family
    "framed": "framed circuits",
    "signs": "framed signs",
    "lie": "framed Lie rotations",
    "core": "framed core",
    "sb": "LoRA-SB",
    "uni": "Uni-LoRA",
    "tiny": "TinyLoRA",
    "qpa": "QPA",
    "xs": "LoRA-XS",
    "gains": "gains of the last norm",
    "lora": "LoRA r=1 on o_proj",
    "plain": "Quantum-PEFT",
    "vera": "VeRA on v_proj",
}
FURTHER_SEEDS = {500: "adapters-500-seeds-e2e", 10_000: "adapters-10000-seeds-e2e"}
SMALL_BUDGETS = {500: 400, 10_000: 5_000}  # of the small bases' order that it is compared with
# of the keys of stage 2, by those of stage 1: the learning rate of the study file, and three times it
ENDINGS = {"2": "1", "3": "3"}
SEARCH_SEED = 10  # which chooses the learning rates of stage 2
SLOT_VALUES = "slot-values-short.json"  # of the texts of stage 6
FRAMED = ("framed", "signs", "lie", "core", "sb")  # in frames of the gradient
BESIDE = ("core", "sb", "uni", "qpa", "xs")  # with which framed circuits are compared in stage 2
PAIRS_10000 = [
    *(Pair("framed", other) for other in ("signs", "lie", "core")),
    *(Pair("qpa", other) for other in ("qpa_frozen", "qpa_random", "uni", "framed")),
]
UPPER = [
    Pair("pauli", "signs"),
    *(Pair("qaa", other) for other in ("givens", "qaa_frozen", "qaa_quadratic", "lora_r5")),
    Pair("cua", "oft"),
    Pair("quic", "random"),
    Pair("quanta", "mpo"),
]


def signal() -> str:
    """Stage 0: what LoRA r=8 gains at its best rate, by text."""
    rows = []
    for text, label in TEXTS.items():
        summary = summaries_of(SMOLLM2).get(f"signal-{text}")
        if summary is None:
            continue
        untrained = mean_loss(summary["none"])
        adapted = mean_loss(summary["lora_r8"])
        rate = summary["lora_r8"].lr
        gained = f"{untrained - adapted:.2f}"
        rows.append([label, f"{untrained:.3f}", f"{adapted:.3f}", gained, f"{rate:g}"])
    header = ["text", "no adapter", "LoRA r=8", "gain, nats a token", "its learning rate"]
    return table(header, rows, numbers=4)


def circuits() -> Grid:
    """Stage 1: framed circuits minus their twins at each learning rate, in per cent of what LoRA
    r=8 gains on the same text.
    """
    summary = stage_1()
    per_cent = 100 / unit_of("e2e")
    rows = []
    for end in RATES:
        ours = summary[f"framed_{end}"]
        compared = (over_seeds(ours, summary[f"{twin}_{end}"]) for twin in TWINS)
        rows.append(Line(f"{ours.lr:g}", [Cell(each.times(per_cent)) for each in compared]))
    return Grid(["learning rate", *(f"minus {label}" for label in TWINS.values())], rows, MARGIN)


def circuit_losses() -> str:
    """Stage 1: the loss of each adapter at each learning rate, its share of LoRA's gain, and how
    far its angles moved.
    """
    summary = stage_1()
    unit = unit_of("e2e")
    rows = []
    for result in sorted(summary.results, key=test_loss):
        if result.key == "none":
            continue
        share = 100 * (test_loss(summary["none"]) - test_loss(result)) / unit
        moved = result.mean("angles_moved")  # Lie rotations have no angles of gates
        rows.append(
            [
                str(result.label),
                f"{result.method.trainable:,}",
                f"{test_loss(result):.3f}",
                f"{share:.1f} %",
                "" if moved is None else f"{moved:.2f}",
            ]
        )
    header = ["adapter", "parameters", "loss", "of LoRA's gain", "angles moved, radians"]
    return table(header, rows, numbers=4)


class Frame(NamedTuple):
    """How much of the gain in the own frame an adapter loses in another one, averaged over the texts
    of stage 3, in per cent.
    """

    label: str
    of_texts: list[float]
    lost: Paired
    decision: str

    @property
    def kept(self) -> str:
        """The rest, with its interval."""
        low, high = self.lost.interval()
        return f"{100 - self.lost.mean:.0f} % [{100 - high:.0f}, {100 - low:.0f}]"


def frames() -> list[Frame]:
    """Stage 3: each frame that is not the own one, in the order of its study."""
    summaries = stage_3()
    some_summary = next(iter(summaries.values()))
    labels = {
        result.key: str(result.label)
        for result in some_summary.results
        if result.key not in ("none", "own", "lora_r8")
    }
    lost = {key: [lost_in(key, summary) for summary in summaries.values()] for key in labels}
    averages = [average(of_texts) for of_texts in lost.values()]
    return [
        Frame(label, of_texts, average, decision)
        for label, of_texts, average, decision in zip(
            labels.values(), lost.values(), averages, decisions_about_loss(averages), strict=True
        )
    ]


def lost_in(key: str, summary: Summary) -> float:
    """What an adapter loses in this frame, in per cent of its gain in the own one."""
    own = test_loss(summary["own"])
    return 100 * (test_loss(summary[key]) - own) / (test_loss(summary["none"]) - own)


def decisions_about_loss(lost: Sequence[Paired]) -> list[str]:
    """Whether more or less than `MOST_LOST` is lost, after Holm's correction."""
    beyond = [Paired(each.mean - MOST_LOST, each.error, each.df) for each in lost]
    differs = holm([each.p for each in beyond])
    keeps = holm([each.p / 2 if each.mean < 0 else 1.0 for each in beyond])  # one-sided
    decided = []
    for each, p_differs, p_keeps in zip(beyond, differs, keeps, strict=True):
        if p_keeps < 1 - LEVEL:
            decided.append("keeps at least 80 %")
        elif each.mean > 0 and p_differs < 1 - LEVEL:
            decided.append("loses more than 20 %")
        else:
            decided.append("undecided")
    return decided


def shared_frames() -> str:
    """Stage 3: what each frame keeps of the gain in the own one, on each text and on average."""
    header = ["frame", *(CUSTOMERS[name] for name in stage_3()), "mean", "more than 20 % lost?"]
    rows = [
        [
            frame.label,
            *(f"{100 - each:.0f} %" for each in frame.of_texts),
            frame.kept,
            frame.decision,
        ]
        for frame in frames()
    ]
    return table(header, rows, numbers=len(header) - 2)


def customers() -> str:
    """Stage 3: losses without an adapter, with one in the own frame and with LoRA r=8, by text."""
    rows = []
    for name, summary in stage_3().items():
        untrained, adapted, lora = (test_loss(summary[key]) for key in ("none", "own", "lora_r8"))
        share = f"{100 * (untrained - adapted) / (untrained - lora):.0f} %"
        losses = [f"{loss:.3f}" for loss in (untrained, adapted, lora)]
        rows.append([CUSTOMERS[name], *losses, share])
    header = ["text", "no adapter", "own frame", "LoRA r=8", "own frame, of LoRA's gain"]
    return table(header, rows, numbers=4)


class Tried(NamedTuple):
    """An adapter of stage 2 at one of its learning rates."""

    rate: float
    valid_loss: float  # of SEARCH_SEED
    test_losses: dict[int, float]  # by seed; one seed for a rate that was not chosen
    trainable: int

    @property
    def test_loss(self) -> float:
        return fmean(self.test_losses.values())


class Ordered(NamedTuple):
    """An adapter of stage 2, at the learning rate with the lowest validation loss."""

    family: str
    best: Tried
    small_share: float  # of LoRA's gain on the small bases


class Reread(NamedTuple):
    """An adapter of stage 7."""

    result: Result
    test_losses: dict[int, float]  # by seed
    on_e2e: float  # mean test loss of the same configuration and seeds on the E2E references

    @property
    def loss(self) -> float:
        return fmean(self.test_losses.values())


def ordered(budget: int = 500) -> list[Ordered]:
    """The adapters of stage 2 that ran at this budget, the best first."""
    small = {
        key.partition("_")[0]: suggest_evidence.mean_share(design)
        for key, design in suggest_evidence.designs().items()
        if design["budget"] == SMALL_BUDGETS[budget]
    }
    tried = {family: tried_of(family, budget) for family in ORDERED}
    adapters = [
        Ordered(family, min(runs, key=lambda run: run.valid_loss), small[family])
        for family, runs in tried.items()
        if runs
    ]
    return sorted(adapters, key=lambda adapter: adapter.best.test_loss)


def tried_of(family: str, budget: int = 500) -> list[Tried]:
    """The runs of a family in stage 2, at its two learning rates; at 500 parameters those of three
    families are in stage 1.
    """
    of_smollm2 = summaries_of(SMOLLM2)
    runs = []
    for in_stage_1, ending in ENDINGS.items():
        if budget != 500:
            result = _found(of_smollm2["adapters-10000-e2e"], f"{family}_{ending}")
        elif family in TWINS or family == "framed":
            result = stage_1()[f"{family}_{in_stage_1}"]
        else:
            result = _found(stage_2(), f"{family}_{ending}")
        if result is None:  # no adapter of this family has the size
            continue
        rows = result.successes
        further = _found(of_smollm2[FURTHER_SEEDS[budget]], family)
        if further is not None and further.lr == result.lr:
            rows = rows | further.successes
        assert result.lr is not None
        runs.append(
            Tried(
                result.lr,
                rows[SEARCH_SEED]["valid_loss"],
                {seed: row["test_loss"] for seed, row in rows.items()},
                result.method.trainable,
            )
        )
    return runs


def _found(summary: Summary, key: str) -> Result | None:
    return next((result for result in summary.results if result.key == key), None)


def small_places(adapters: Sequence[Ordered]) -> dict[str, int]:
    """By family, its place on the small bases."""
    in_order = sorted(adapters, key=lambda adapter: -adapter.small_share)
    return {adapter.family: place for place, adapter in enumerate(in_order, start=1)}


def unit_of(text: str) -> float:
    """What LoRA r=8 on all maps gains on one of `TEXTS`, in nats a token."""
    return gain(summaries_of(SMOLLM2)[f"signal-{text}"])


def shares(adapter: Ordered) -> Paired:
    """Of the gain of LoRA r=8 on all maps, in per cent, over the seeds."""
    untrained = test_loss(stage_2()["none"])
    gained = [untrained - loss for loss in adapter.best.test_losses.values()]
    return average(gained).times(100 / unit_of("e2e"))


def adapters_500() -> str:
    """Stage 2: the order of the adapters of 500 parameters, and that on the small bases."""
    return _order_table(500)


def adapters_10000() -> str:
    """Stage 2: the order of the adapters of 10,000 parameters, and that on the small bases."""
    return _order_table(10_000)


def _order_table(budget: int) -> str:
    adapters = ordered(budget)
    small = small_places(adapters)
    rows = [
        [
            ORDERED[adapter.family],
            f"{place}",
            f"{small[adapter.family]}",
            f"{adapter.best.trainable:,}",
            f"{adapter.best.rate:g}",
            f"{adapter.best.test_loss:.3f}",
            share_text(shares(adapter)),
        ]
        for place, adapter in enumerate(adapters, start=1)
    ]
    places = ["place", "place on small bases"]
    header = ["adapter", *places, "parameters", "rate", "loss", "of LoRA's gain"]
    return table(header, rows, numbers=6)


def share_text(share: Paired) -> str:
    """In per cent; with its interval if there is more than one seed."""
    text = f"{share.mean:.0f} %"
    if share.df == 0:
        return text
    low, high = share.interval()
    return f"{text} [{low:.0f}, {high:.0f}]"


def beside_framed() -> Grid:
    """Stage 2: framed circuits of 392 parameters minus other adapters, in per cent of LoRA's gain."""
    best = {adapter.family: adapter.best for adapter in ordered()}
    ours = best["framed"].test_losses
    lines = []
    for family in BESIDE:
        others = best[family].test_losses
        paired = average([ours[seed] - others[seed] for seed in sorted(ours)])
        label = f"framed circuits minus {ORDERED[family]}"
        lines.append(Line(label, [Cell(paired.times(100 / unit_of("e2e")))]))
    return Grid(DIFFERENCE, lines, MARGIN)


def pairs_10000() -> Grid:
    """Stage 2: adapters of 10,000 parameters, in per cent of LoRA's gain; QPA's twins among them."""
    losses = {adapter.family: adapter.best.test_losses for adapter in ordered(10_000)}
    labels = dict(ORDERED)
    twins = summaries_of(SMOLLM2)["adapters-10000-twins-e2e"]
    for key in ("qpa_frozen", "qpa_random"):
        losses[key] = _test_losses(twins[key])
        labels[key] = str(twins[key].label)
    lines = []
    for pair in PAIRS_10000:
        ours, other = pair.ours, pair.other
        seeds = sorted(losses[ours])
        paired = average([losses[ours][seed] - losses[other][seed] for seed in seeds])
        label = f"{labels[ours]} minus {labels[other]}"
        lines.append(Line(label, [Cell(paired.times(100 / unit_of("e2e")))]))
    return Grid(DIFFERENCE, lines, MARGIN)


def shakespeare() -> list[Reread]:
    """The adapters of stage 7, the best first."""
    stage_2_losses = {adapter.family: adapter.best.test_losses for adapter in ordered()}
    for family in ("framed", *TWINS):  # at the rate that they have in stage 7
        in_stage_1 = stage_1()[f"{family}_3"]
        stage_2_losses[family] = _test_losses(in_stage_1)
    adapters = []
    for result in stage_7().results:
        if result.key == "none":
            continue
        losses = _test_losses(result)
        of_e2e = stage_2_losses[result.key]
        on_e2e = fmean(of_e2e[seed] for seed in losses)
        adapters.append(Reread(result, losses, on_e2e))
    return sorted(adapters, key=lambda adapter: adapter.loss)


def share_of_shakespeare(adapter: Reread) -> Paired:
    """Of the gain of LoRA r=8 on all maps, in per cent, over the seeds."""
    untrained = test_loss(stage_7()["none"])
    gained = [untrained - loss for loss in adapter.test_losses.values()]
    return average(gained).times(100 / unit_of("shakespeare"))


def on_shakespeare() -> str:
    """Stage 7: the order of adapters of 500 parameters on Shakespeare, and on the E2E references."""
    adapters = shakespeare()
    by_e2e = sorted(adapters, key=lambda adapter: adapter.on_e2e)
    rows = [
        [
            adapter.result.label,
            f"{place}",
            f"{by_e2e.index(adapter) + 1}",
            f"{adapter.result.lr:g}",
            f"{adapter.loss:.3f}",
            share_text(share_of_shakespeare(adapter)),
        ]
        for place, adapter in enumerate(adapters, start=1)
    ]
    places = ["place", "place on E2E references"]
    return table(["adapter", *places, "rate", "loss", "of LoRA's gain"], rows, numbers=5)


def beside_framed_on_shakespeare() -> Grid:
    """Stage 7: framed circuits minus other adapters, in per cent of LoRA's gain."""
    pairs = [Pair("framed", other) for other in (*TWINS, *BESIDE)]
    return Grid(DIFFERENCE, differences(stage_7(), pairs, unit_of("shakespeare")), MARGIN)


class Written(NamedTuple):
    """What an adapter of stage 6 wrote for 200 meaning representations."""

    result: Result
    bleu: float
    share: float  # of LoRA's gain in BLEU, per cent
    values: float  # that its texts name, per cent of those that they shall name
    texts: float  # that name all of theirs, per cent


def written() -> list[Written]:
    """Stage 6, shortened to one seed: the untouched model and its adapters, the best BLEU first."""
    summary = stage_6()
    counted = slot_counts()
    bleu = {result.key: result.mean("bleu_lowercase") or 0.0 for result in summary.results}
    gained = bleu["lora_r8"] - bleu["none"]
    adapters = []
    for result in summary.results:
        share = 100 * (bleu[result.key] - bleu["none"]) / gained
        adapters.append(Written(result, bleu[result.key], share, *counted[result.key]))
    return sorted(adapters, key=lambda adapter: -adapter.bleu)


def slot_counts() -> dict[str, tuple[float, float]]:
    """By method, and for the texts of people: the share of the values that texts name, and of the
    texts that name all of theirs, in per cent.
    """
    counted = json.loads((RESULTS / SMOLLM2 / SLOT_VALUES).read_text(encoding="utf-8"))
    shares = {}
    for key, of_seeds in counted.items():
        (counts,) = of_seeds.values()  # there is one seed
        n_named = sum(named for named, _ in counts)
        n_values = sum(values for _, values in counts)
        n_whole = sum(named == values for named, values in counts)
        shares[key] = (100 * n_named / n_values, 100 * n_whole / len(counts))
    return shares


def generated() -> str:
    """Stage 6: BLEU of the texts, and the values of their meaning representations in them."""
    rows = [
        [
            str(adapter.result.label),
            f"{adapter.result.method.trainable:,}",
            f"{adapter.bleu:.1f}",
            f"{adapter.share:.0f} %",
            f"{adapter.values:.0f} %",
            f"{adapter.texts:.0f} %",
            f"{test_loss(adapter.result):.3f}",
        ]
        for adapter in written()
    ]
    values, texts = slot_counts()["people"]
    rows.insert(0, ["people", "", "", "", f"{values:.0f} %", f"{texts:.0f} %", ""])
    header = ["adapter", "parameters", "BLEU", "of LoRA's gain"]
    return table([*header, "values named", "texts with all values", "loss"], rows, numbers=6)


def sentences() -> str:
    """Stage 5: each adapter of MiniLM on SST-2, with its share of LoRA's gain in log loss."""
    summary = summaries_of(SMOLLM2)["sst2"]
    rows = []
    for result in sorted(summary.results, key=mean_loss):
        share = 100 * (mean_loss(summary["head"]) - mean_loss(result)) / unit(summary)
        low, mean, high = (
            100 * (result.mean(f"test_accuracy{end}") or 0) for end in ("_low", "", "_high")
        )
        rows.append(
            [
                str(result.label),
                f"{result.method.trainable:,}",
                f"{result.lr:g}",
                f"{mean_loss(result):.3f}",
                f"{share:.0f} %",
                f"{mean:.1f} % [{low:.1f}, {high:.1f}]",
            ]
        )
    header = ["adapter", "parameters", "rate", "log loss", "of LoRA's gain", "accuracy"]
    return table(header, rows, numbers=5)


def sentence_pairs() -> Grid:
    """Stage 5: its comparisons, in per cent of what LoRA r=1 gains over the head alone."""
    summary = summaries_of(SMOLLM2)["sst2"]
    header = ["log loss of", "difference, per cent of LoRA's gain"]
    return Grid(header, differences(summary, SENTENCES, unit(summary)), MARGIN)


def unit(summary: Summary) -> float:
    """What LoRA r=1 gains over the head alone, in log loss."""
    return mean_loss(summary["head"]) - mean_loss(summary["lora_r1"])


def adapters(summary: Summary, score: str = "test_ppl", title: str = "perplexity") -> str:
    """Each adapter of a study, with its share of the gain of the study's reference, a LoRA; `title`
    is that of the `score`.
    """
    rows = []
    for result in sorted(summary.results, key=test_loss):
        share = 100 * (test_loss(summary["none"]) - test_loss(result)) / gain(summary)
        rows.append(
            [
                str(result.label),
                f"{result.method.trainable:,}",
                "" if result.lr is None else f"{result.lr:g}",
                f"{test_loss(result):.3f}",
                f"{result.mean(score):.1f}",
                f"{share:.1f} %",
            ]
        )
    header = ["adapter", "parameters", "learning rate", "loss", title, "of LoRA's gain"]
    return table(header, rows, numbers=5)


def pairs_of(summary: Summary, pairs: Sequence[Pair]) -> Grid:
    """Comparisons of a study, in per cent of what its reference, a LoRA, gains."""
    return Grid(DIFFERENCE, differences(summary, pairs, gain(summary)), MARGIN)


def stage_1() -> Summary:
    """Framed circuits and their twins on all linear maps of SmolLM2, at four learning rates."""
    return summaries_of(SMOLLM2)["circuit-e2e"]


def stage_2() -> Summary:
    """Adapters of 500 parameters on SmolLM2, at two learning rates each, with one seed."""
    return summaries_of(SMOLLM2)["adapters-500-e2e"]


def stage_3() -> dict[str, Summary]:
    """The adapter of 392 parameters in several frames, by the text that it is trained on."""
    found = summaries_of(SMOLLM2)
    return {name: found[f"frames-{name}"] for name in CUSTOMERS if f"frames-{name}" in found}


def stage_4() -> Summary:
    """QPA at half of LoRA r=4 on the output head of SmolLM2."""
    return summaries_of(SMOLLM2)["head-wikitext2"]


def stage_6() -> Summary:
    """Adapters of 500 parameters and LoRA on SmolLM2, trained to describe restaurants."""
    return summaries_of(SMOLLM2)["generation-short"]


def stage_7() -> Summary:
    """Adapters of 500 parameters on SmolLM2, trained on Shakespeare."""
    return summaries_of(SMOLLM2)["adapters-500-shakespeare"]


def stage_8() -> Summary:
    """Published quantum adapters and their twins in the two upper layers of SmolLM2."""
    return summaries_of(SMOLLM2)["twins-e2e"]


def recipe() -> Summary:
    """The recipe of QPA's published experiment on SmolLM2."""
    return summaries_of("recipes")["qpa-smollm2-wikitext2"]


def described() -> Summary:
    """The recipe of Quantum-PEFT's published experiment on SmolLM2."""
    return summaries_of("recipes")["quantum-peft-smollm2-e2e"]


def test_loss(result: Result) -> float:
    """In nats per token, averaged over the seeds, also where the study's metric is another."""
    return fmean(row["test_loss"] for row in result.successes.values())


def _test_losses(result: Result) -> dict[int, float]:
    return {seed: row["test_loss"] for seed, row in result.successes.items()}


def gain(summary: Summary) -> float:
    """What the reference of a study gains over the base without an adapter, in nats."""
    return test_loss(summary["none"]) - test_loss(summary[str(summary.study.reference)])


def differences(summary: Summary, pairs: Sequence[Pair], unit: float) -> list[Line]:
    """The difference of each pair over the seeds, in per cent of `unit` nats."""
    lines = []
    for pair in pairs:
        ours = summary[pair.ours]
        other = summary[pair.other]
        difference = over_seeds(ours, other).times(100 / unit)
        lines.append(Line(f"{ours.label} minus {other.label}", [Cell(difference)]))
    return lines


def over_seeds(ours: Result, other: Result) -> Paired:
    """The difference of the test losses of each seed, with the variation of seeds alone."""
    losses, others = _test_losses(ours), _test_losses(other)
    return average([losses[seed] - others[seed] for seed in sorted(losses.keys() & others.keys())])


def average(differences: Sequence[float]) -> Paired:
    """Their mean, with their own variation, which one value does not have."""
    n = len(differences)
    error = stdev(differences) / math.sqrt(n) if n > 1 else 0.0
    return Paired(fmean(differences), error or 1e-12, n - 1)
