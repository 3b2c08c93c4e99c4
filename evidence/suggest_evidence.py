"""Writes the evidence of `qpeft.suggest`, src/qpeft/methods/evidence.json, from published results.

    python evidence/suggest_evidence.py
    python evidence/suggest_evidence.py STUDY.yaml BASE [--rates]     # a study on a base that no search knows

The results are those of `equal-search` and `equal-search-final`, and for large bases those of stages
1 and 2 of the protocol on SmolLM2. A design is a family at a budget that has an adapter in every setup, with
the configuration that is the best on average over the searches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from math import log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import yaml
from scipy.stats import t as student

from comparisons import mean_loss
from qpeft.files import write_text
from qpeft_lab.compare.rows import succeeded
from qpeft_lab.compare.study import Method, load_study
from qpeft_lab.compare.summary import Result, Summary
from winners import BUDGETS, FINAL, ROOT, SETUPS, TEST_BLOCKS, summaries_of

STUDY = ROOT / "evidence" / "studies" / "equal-search.yaml"
TARGET = ROOT / "src" / "qpeft" / "methods" / "evidence.json"
REFERENCE = f"lora_{BUDGETS[-1]}"
RATED = {"qpa": "QPA", "uni": "Uni-LoRA", "lora": "LoRA"}  # their learning rates must travel
# by the budget of a design on the small bases, that of stages 1 and 2 on SmolLM2, and its studies
LARGE_BUDGETS = {400: 500, 5000: 10_000}
LARGE_STUDIES = {400: ("circuit-e2e", "adapters-500-e2e"), 5000: ("adapters-10000-e2e",)}
FURTHER_SEEDS = {  # by the study that chose their learning rates
    "adapters-500-e2e": "adapters-500-seeds-e2e",
    "adapters-10000-e2e": "adapters-10000-seeds-e2e",
}
NEXT_HIGHER = 0.05  # the part that counts of what the next higher learning rate loses
QUANTITIES = {  # of each base, which the best learning rate may depend on; norms: means over maps
    "width": {"embedded": 128, "stories260K": 64, "bytes1m": 128, "llama10m": 256},
    "linear maps": {"embedded": 20, "stories260K": 35, "bytes1m": 20, "llama10m": 70},
    "outputs of the head": {
        "embedded": 4_096,
        "stories260K": 512,
        "bytes1m": 258,
        "llama10m": 4_096,
    },
    "norm of a map": {"embedded": 14.2, "stories260K": 10.1, "bytes1m": 14.7, "llama10m": 9.96},
    "r.m.s. of a weight": {
        "embedded": 0.0647,
        "stories260K": 0.135,
        "bytes1m": 0.0674,
        "llama10m": 0.0303,
    },
    "parameters of LoRA r=1": {
        "embedded": 10_240,
        "stories260K": 5_780,
        "bytes1m": 10_240,
        "llama10m": 49_280,
    },
}
POWERS = (0.5, -0.5)
# Uni-LoRA divides each value by the root of the number of parameters of its LoRA that have it
GROWS = {"uni": ("parameters of LoRA r=1", 0.5)}
WIDER = {  # the study names the modules of its two bases; these are those of further architectures
    ".*(attn\\.c_proj|o_proj)": (
        ".*(attn\\.c_proj|o_proj|attention\\.dense|self_attn\\.out_proj|self_attn\\.dense)"
    ),
    ".*(mlp\\.c_proj|down_proj)": ".*(mlp\\.c_proj|down_proj|dense_4h_to_h|fc2)",
    ".*down_proj": ".*(mlp\\.c_proj|down_proj|dense_4h_to_h|fc2)",
}

NORMS = {"@norms": "all", "@last-norm": "last"}  # of a study


class Tuning(NamedTuple):
    """The search of a configuration on a base: validation losses by learning rate, None for a run
    that failed.

    `gain` is that of LoRA within 5,000 parameters. Learning rates that grow with a quantity are
    those of the embedded base; on this one the study had them times `factor(...)`.
    """

    base: str
    untrained: float
    gain: float
    losses: dict[float, float | None]
    setup: str = ""

    @property
    def best(self) -> float:
        return min(loss for loss in self.losses.values() if loss is not None)

    @property
    def share(self) -> float:
        return (self.untrained - self.best) / self.gain

    def lost(self, rate: float) -> float:
        """The share of the best learning rate's gain that this one loses, or the nearest that was
        tried.
        """
        loss = self.losses[nearest(self.losses, rate)]
        return 1.0 if loss is None else (loss - self.best) / (self.untrained - self.best)


def nearest(tried: Iterable[float], rate: float) -> float:
    """The learning rate of `tried` with the smallest ratio to `rate`."""
    return min(tried, key=lambda each: abs(log(each / rate)))


def evidence() -> dict[str, Any]:
    """The content of evidence.json."""
    searches = summaries_of("equal-search")
    keys = [spec.key for spec in load_study(str(STUDY)).methods[1:]]
    tunings = {key: tuning(searches, key) for key in keys}
    elsewhere = summaries_of("elsewhere").values()
    lost_by_budget = {}
    for budget in BUDGETS:
        within = {key: of for key, of in tunings.items() if of and budget_of(key) <= budget}
        regrets = [regret(summary, budget).share for summary in elsewhere]
        lost_by_budget[str(budget)] = lost(within) + regrets
    return rounded(
        {
            "reference": "LoRA within 5,000 parameters",
            "designs": [of_library(design) for design in designs().values()],
            "lost": lost_by_budget,
            "large": {label: of_library(each) for label, each in on_large_bases().items()},
            "large_reference": "LoRA r=8",
        }
    )


def on_large_bases() -> dict[str, dict[str, Any]]:
    """By the label of a design, the adapter of its family that stage 1 or 2 of the protocol on
    SmolLM2 measured at several learning rates.

    The result is that of the learning rate that the rule for all bases chooses by validation losses,
    averaged over the seeds; or the better one of two.
    """
    of_smollm2 = summaries_of("smollm2")
    signal = of_smollm2["signal-e2e"]
    untrained, reference = (mean_loss(signal[name]) for name in ("none", "lora_r8"))
    lora_parameters = signal["lora_r8"].method.trainable // 8  # of LoRA r=1
    found = {}
    for key, design in designs().items():
        family = key.partition("_")[0]
        for name in LARGE_STUDIES.get(budget_of(key), ()):
            stage = of_smollm2[name]
            runs = [result for result in stage.results if result.key.startswith(f"{family}_")]
            if not runs or "layers_to_transform" in runs[0].method.settings:
                continue  # layers of this base alone
            by_rate = {run.lr: run for run in runs if run.lr}
            validation = {rate: validation_loss(run) for rate, run in by_rate.items()}
            base = Path(stage.study.run.model).name
            searched = Tuning(base, validation_loss(stage["none"]), 1.0, {**validation})
            # of two, as in stage 2, the rule would always choose the lower one
            has_search = len(validation) > 2
            rate = (
                safe_learning_rate([searched])
                if has_search
                else min(by_rate, key=lambda tried: validation[tried])
            )
            chosen = by_rate[rate]
            measured = chosen.method.settings.items()
            further = of_smollm2[FURTHER_SEEDS[name]].results if name in FURTHER_SEEDS else []
            seeds = [chosen, *(run for run in further if run.key == family)]
            budget = LARGE_BUDGETS[budget_of(key)]
            found[design["label"]] = design | {
                "label": design["label"].replace(f"{budget_of(key):,}", f"{budget:,}"),
                "settings": _widened({k: v for k, v in measured if k != design["vary"]}),
                "budget": budget,
                "learning_rates": {"": rate, base: rate},
                "per_lora": lora_parameters if family in GROWS else None,
                "results": [setup_result(stage, seeds, untrained, reference, "E2E references")],
            }
    return found


def validation_loss(result: Result) -> float:
    """Of a run, averaged over its seeds."""
    return fmean(row["valid_loss"] for row in result.successes.values())


def rounded(value: Any) -> Any:
    """JSON whose numbers have six digits, more than their seeds agree on."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def of_library(design: dict[str, Any]) -> dict[str, Any]:
    """The design with its normalizations in the field `norms`, which a study names in settings."""
    which = NORMS.get(str(design["settings"].get("target_modules")))
    return design if which is None else {**design, "settings": {}, "norms": which}


def budget_of(key: str) -> int:
    """Of a configuration, such as uni_1300_a."""
    return int(key.split("_")[-2])


def mean_share(design: dict[str, Any]) -> float:
    """Of LoRA's gain in test loss, over the setups of the evidence."""
    return fmean(setup["share"] for setup in design["results"])


@cache
def designs() -> dict[str, dict[str, Any]]:
    """The designs by their configuration in the search, such as uni_1300_a."""
    finals = summaries_of(FINAL)
    searches = summaries_of("equal-search")
    specs = {spec.key: spec for spec in load_study(str(STUDY)).methods}
    winners = [result.key for result in next(iter(finals.values())).results if result.method.rates]
    of_key: dict[str, dict[str, Any]] = {}
    for key in winners:
        in_all = all(any(r.key == key for r in summary.results) for summary in finals.values())
        tunings = {name: tuning(searches, name) for name in specs if name.startswith(f"{key}_")}
        fitting = [name for name, of_name in tunings.items() if of_name]
        if not in_all or not fitting:
            continue
        chosen = max(fitting, key=lambda name: fmean(each.share for each in tunings[name]))
        family, _, budget = key.rpartition("_")
        of_key[chosen] = _design(specs[chosen], int(budget)) | {
            "learning_rates": learning_rates(
                tunings[chosen] + tuning(summaries_of("rates"), chosen)
            ),
            "per_lora": (
                QUANTITIES["parameters of LoRA r=1"]["embedded"] if family in GROWS else None
            ),
            "results": [
                setup_result(
                    summary,
                    [summary[key]],
                    untrained=mean_loss(summary["none"]),
                    reference=mean_loss(summary[REFERENCE]),
                    data=SETUPS[setup].partition(", ")[2],
                )
                for setup, summary in finals.items()
            ],
        }
    return of_key


def factor(key: str, base: str, grows: tuple[str, float] | None = None) -> float:
    """By what the learning rates of a configuration grow from the embedded base to this one."""
    quantity, power = grows or GROWS.get(key.partition("_")[0], ("width", 0))
    return (QUANTITIES[quantity][base] / QUANTITIES[quantity]["embedded"]) ** power


def tuning(
    searches: dict[str, Summary], key: str, grows: tuple[str, float] | None = None
) -> list[Tuning]:
    """The searches of a configuration; none if it exceeds its budget in one of `equal-search`."""
    tunings = []
    for setup, summary in searches.items():
        if all(result.key != key for result in summary.results):
            continue
        too_large = summary[key].method.trainable > budget_of(key)
        if too_large and summary.study.name == STUDY.stem:
            return []
        untrained = summary["none"].mean("valid_loss") or 0
        loras = [_losses(r) for r in summary.results if r.key.startswith(f"{REFERENCE}_")]
        best_lora = min(loss for of in loras for loss in of.values() if loss is not None)
        base = Path(summary.study.run.model).name
        times = factor(key, base, grows)
        losses = {rate / times: loss for rate, loss in _losses(summary[key]).items()}
        tunings.append(Tuning(base, untrained, untrained - best_lora, losses, setup))
    return tunings


def _losses(result: Result) -> dict[float, float | None]:
    return {
        rate: round(row["valid_loss"], 6) if row and succeeded(row) else None
        for rate, row in result.trials.items()
    }


def _design(spec: Method, budget: int) -> dict[str, Any]:
    label = str(spec.label).rpartition(" ")[0]
    return {
        "label": f"{label} parameters",
        "method": spec.method,
        "settings": _widened(spec.settings),
        "budget": budget,
        "vary": spec.vary,
        "values": spec.values,
    }


def _widened(settings: dict[str, Any]) -> dict[str, Any]:
    """With the modules of further architectures."""
    return {name: WIDER.get(str(value), value) for name, value in settings.items()}


def setup_result(
    summary: Summary, results: Sequence[Result], untrained: float, reference: float, data: str
) -> dict[str, Any]:
    """What a family reached in a setup, in test loss, over the seeds of all `results`; `untrained`
    and `reference` are those of the base alone and of the reference.
    """
    stats = [result.metric for result in results if result.metric]
    losses = [loss for each in stats for loss in each.values.values()]
    mean = fmean(losses)
    if len(losses) > 1:
        reach = float(student.ppf(0.975, len(losses) - 1)) * stdev(losses) / sqrt(len(losses))
        low, high = mean - reach, mean + reach
    else:
        low = high = None
    return {
        "base": Path(summary.study.run.model).name,
        "base_parameters": summary.study.params_total,
        "data": data,
        "steps": summary.study.run.steps,
        "trainable": results[0].method.trainable,
        "seeds": len(losses),
        "loss": mean,
        "low": low,
        "high": high,
        "share": (untrained - mean) / (untrained - reference),
    }


def lost(searched: dict[str, list[Tuning]]) -> list[float]:
    """What a choice from the searches of the other bases loses of the best gain in each search, in
    validation loss.

    They choose the configuration, of any family, and its learning rate; instead of one that was not
    tried here the nearest counts.
    """
    shares = []
    for number, here in enumerate(next(iter(searched.values()))):
        best = min(tunings[number].best for tunings in searched.values())
        others = {
            key: [tuning for tuning in tunings if tuning.base != here.base]
            for key, tunings in searched.items()
        }
        if not all(others.values()):
            continue
        first = max(others, key=lambda key: fmean(each.share for each in others[key]))
        losses = searched[first][number].losses
        loss = losses[nearest(losses, safe_learning_rate(others[first]))]
        shares.append(1.0 if loss is None else (loss - best) / (here.untrained - best))
    return shares


class Regret(NamedTuple):
    """The answer of `suggest`, the best design, and the share of its gain that the answer loses."""

    answer: str
    best: str
    share: float


def losses_of_designs(summary: Summary, budget: int) -> dict[str, float]:
    """The test loss on a base of `elsewhere` of each design that fits, up to this budget."""
    known = designs()
    return {
        result.key: result.metric.mean
        for result in summary.results
        if result.metric
        and result.key in known
        and result.method.trainable <= known[result.key]["budget"] <= budget
    }


def regret(summary: Summary, budget: int) -> Regret:
    """What `suggest` answers within a budget on a base of `elsewhere`, and what that loses."""
    known = designs()
    losses = losses_of_designs(summary, budget)
    answer = max(losses, key=lambda key: mean_share(known[key]))
    best = min(losses, key=lambda key: losses[key])
    untrained = summary["none"].mean("test_loss") or 0
    share = (losses[answer] - losses[best]) / (untrained - losses[best])
    return Regret(answer, best, share)


def left_out(tunings: list[Tuning]) -> float:
    """The most that a base loses with the rate that the searches of the others choose; 1 if they
    choose none.
    """
    of_others = [[each for each in tunings if each.base != here.base] for here in tunings]
    with suppress(ValueError):  # no learning rate is near the best of all of them
        return max(
            here.lost(safe_learning_rate(known))
            for here, known in zip(tunings, of_others, strict=True)
        )
    return 1.0


def learning_rates(tunings: list[Tuning]) -> dict[str, float]:
    """The one that is safe in all searches, under "", and the one on each base."""
    rates = {}
    for name in dict.fromkeys(["", *(tuning.base for tuning in tunings)]):
        own = [tuning for tuning in tunings if name in ("", tuning.base)]
        rates[name] = float(f"{safe_learning_rate(own):.3g}")
    return rates


def safe_learning_rate(tunings: list[Tuning]) -> float:
    """The learning rate with the lowest cost in the search where it costs most.

    A learning rate costs the share of the gain in validation loss that it loses to the best one,
    and a part of what the next higher one loses, which tells how near failures are. Nothing is
    known above the highest, which is left out. Of a rate that was not tried the nearest counts.
    """
    costs = []
    for tuning in tunings:
        lost = {rate: tuning.lost(rate) for rate in sorted(tuning.losses)}
        costs.append(
            {rate: lost[rate] + NEXT_HIGHER * lost[higher] for rate, higher in pairwise(lost)}
        )
    low = max(min(of_search) for of_search in costs)
    high = min(max(of_search) for of_search in costs)
    all_rates = set().union(*costs)
    tried = sorted(rate for rate in all_rates if low / 2 < rate < 2 * high)
    return min(
        tried, key=lambda rate: max(of_search[nearest(of_search, rate)] for of_search in costs)
    )


def study_elsewhere(base: str, *, rates: bool = False) -> dict[str, Any]:
    """The study of designs on a base, at the learning rates that `suggest` gives without searches
    on this base.

    With `rates`, those of RATED, at these learning rates and at others.
    """
    known = designs()
    best_first = sorted(known, key=lambda key: -mean_share(known[key]))
    family = {key: key.partition("_")[0] for key in best_first}
    methods = []
    for budget in BUDGETS:
        of_budget = [key for key in best_first if known[key]["budget"] == budget]
        uni = next(key for key in of_budget if family[key] == "uni")
        asked = [key for key in of_budget if family[key] in RATED] if rates else of_budget
        for key in dict.fromkeys([uni, *asked]):  # Uni-LoRA first, whose size is the budget
            design = known[key]
            fields = ("label", "method", "settings", "vary", "values")
            method = {"key": key} | {name: design[name] for name in fields}
            if design["vary"]:
                method["at_size_of"] = uni
            searches = summaries_of("equal-search") | summaries_of("rates")
            elsewhere = [each for each in tuning(searches, key) if each.base != base]
            method["lr"] = safe_learning_rate(elsewhere) * factor(key, base)
            methods.append(method)
    return {
        "name": "rates" if rates else "elsewhere",
        "title": "The adapters of suggest on a base that no search knows",
        "question": (
            "How much do qpeft.suggest and its learning rates lose on a new base? See"
            " evidence/PROTOCOL.md."
        ),
        "reference": next(key for key in known if key.startswith(REFERENCE)),
        "seeds": [*range(1, 6)],
        "tuning": {"grid": [0.1, 0.3, 1.0, 3.0, 10.0] if rates else [1.0]},
        "run": load_study(str(STUDY)).model_dump(exclude_defaults=True)["run"],
        "test_blocks": TEST_BLOCKS,
        "costs": False,
        "methods": [{"key": "none", "label": "untrained base", "method": "none"}, *methods],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("base", nargs="?", help="such as bytes1m, whose searches are left out")
    parser.add_argument("--rates", action="store_true")
    asked = parser.parse_args()
    if asked.study:
        study = study_elsewhere(asked.base, rates=asked.rates)
        write_text(asked.study, yaml.safe_dump(study, sort_keys=False))
    else:
        content = evidence()
        as_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
        designs = ",\n".join(map(as_json, content.pop("designs")))
        others = as_json(content).removesuffix("}")
        write_text(TARGET, f'{others},"designs":[\n{designs}\n]}}\n')  # a line for each


if __name__ == "__main__":
    main()
