"""Writes the evidence of `qpeft.suggest`, src/qpeft/methods/evidence.json, from published results.

    python evidence/suggest_evidence.py
    python evidence/suggest_evidence.py STUDY.yaml BASE [--rates]     # a study on a base that no search knows

The results are those of `equal-search` and `equal-search-final`. A design is a family at a budget
that has an adapter in every setup, with the configuration that is the best on average over the
searches.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from functools import cache
from itertools import pairwise
from math import log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import yaml
from scipy.stats import t as student

from qpeft.files import write_json, write_text
from qpeft_lab.compare.rows import succeeded
from qpeft_lab.compare.study import Method, load_study
from qpeft_lab.compare.summary import Result, Summary
from winners import BUDGETS, FINAL, ROOT, SETUPS, TEST_BLOCKS, summaries_of

STUDY = ROOT / "evidence" / "studies" / "equal-search.yaml"
TARGET = ROOT / "src" / "qpeft" / "methods" / "evidence.json"
REFERENCE = f"lora_{BUDGETS[-1]}"
RATED = {
    "qpa": "QPA",
    "uni": "Uni-LoRA",
    "lora": "LoRA",
}  # families whose learning rates must travel
NEXT_HIGHER = 0.05  # the part that counts of what the next higher learning rate loses
QUANTITIES = {  # of each base, which the best learning rate may depend on
    "width": {"embedded": 128, "stories260K": 64, "bytes1m": 128, "llama10m": 256},
    "linear maps": {"embedded": 20, "stories260K": 35, "bytes1m": 20, "llama10m": 70},
    "outputs of the head": {
        "embedded": 4_096,
        "stories260K": 512,
        "bytes1m": 258,
        "llama10m": 4_096,
    },
    "norm of a map": {
        "embedded": 14.2,
        "stories260K": 10.1,
        "bytes1m": 14.7,
        "llama10m": 9.96,
    },  # means over all maps
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
}


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
        loss = self.losses[min(self.losses, key=lambda tried: abs(log(tried / rate)))]
        return 1.0 if loss is None else (loss - self.best) / (self.untrained - self.best)


def evidence() -> dict[str, Any]:
    """The content of evidence.json."""
    searches, keys = (
        summaries_of("equal-search"),
        [spec.key for spec in load_study(str(STUDY)).methods[1:]],
    )
    searched = {key: found for key in keys if (found := tuning(searches, key))}
    within = {
        most: {key: of for key, of in searched.items() if int(key.split("_")[-2]) <= most}
        for most in BUDGETS
    }
    elsewhere = summaries_of("elsewhere").values()
    return {
        "reference": "LoRA within 5,000 parameters",
        "designs": [*designs().values()],
        "lost": {
            str(most): lost(some) + [regret(one, most)[1] for one in elsewhere]
            for most, some in within.items()
        },
    }


@cache
def designs() -> dict[str, dict[str, Any]]:
    """The designs by their configuration in the search, such as uni_1300_a."""
    finals, searches = summaries_of(FINAL), summaries_of("equal-search")
    studied = {spec.key: spec for spec in load_study(str(STUDY)).methods}
    found: dict[str, dict[str, Any]] = {}
    for key in (one.key for one in next(iter(finals.values())).results if one.method.rates):
        if not all(any(one.key == key for one in summary.results) for summary in finals.values()):
            continue
        tunings = {
            spec.key: tuning(searches, spec.key)
            for spec in studied.values()
            if spec.key.startswith(f"{key}_")
        }
        if not (fits := [name for name, of in tunings.items() if of]):
            continue
        chosen = max(fits, key=lambda name: fmean(one.share for one in tunings[name]))
        found[chosen] = {
            **_design(studied[chosen], int(key.rpartition("_")[2])),
            "learning_rates": learning_rates(
                tunings[chosen] + tuning(summaries_of("rates"), chosen)
            ),
            "per_lora": (
                QUANTITIES["parameters of LoRA r=1"]["embedded"]
                if key.partition("_")[0] in GROWS
                else None
            ),
            "results": [result(name, summary, summary[key]) for name, summary in finals.items()],
        }
    return found


def factor(key: str, base: str, grows: tuple[str, float] | None = None) -> float:
    """By what the learning rates of a configuration grow from the embedded base to this one."""
    quantity, power = grows or GROWS.get(key.partition("_")[0], ("width", 0))
    return (QUANTITIES[quantity][base] / QUANTITIES[quantity]["embedded"]) ** power


def tuning(
    searches: dict[str, Summary], key: str, grows: tuple[str, float] | None = None
) -> list[Tuning]:
    """The searches of a configuration; none if it exceeds its budget in one of `equal-search`."""
    found, budget = [], int(key.split("_")[-2])
    for setup, summary in searches.items():
        if all(one.key != key for one in summary.results):
            continue
        if summary[key].method.trainable > budget and summary.study.name == STUDY.stem:
            return []
        untrained = summary["none"].mean("valid_loss") or 0
        loras = [_losses(one) for one in summary.results if one.key.startswith(f"{REFERENCE}_")]
        gain = untrained - min(loss for of in loras for loss in of.values() if loss is not None)
        base = Path(summary.study.run.model).name
        losses = {
            rate / factor(key, base, grows): loss for rate, loss in _losses(summary[key]).items()
        }
        found.append(Tuning(base, untrained, gain, losses, setup))
    return found


def _losses(found: Result) -> dict[float, float | None]:
    trials = found.trials.items()
    return {
        rate: round(row["valid_loss"], 6) if row and succeeded(row) else None
        for rate, row in trials
    }


def _design(spec: Method, budget: int) -> dict[str, Any]:
    settings = {name: WIDER.get(str(value), value) for name, value in spec.settings.items()}
    label = str(spec.label).rpartition(" ")[0]
    return {
        **{"label": f"{label} parameters", "method": spec.method, "settings": settings},
        **{"budget": budget, "vary": spec.vary, "values": spec.values},
    }


def result(setup: str, summary: Summary, found: Result) -> dict[str, Any]:
    """What a family reached in a setup, in test loss."""
    assert found.metric is not None
    untrained, reference = (
        one.mean for name in ("none", REFERENCE) if (one := summary[name].metric)
    )
    losses, mean = [*found.metric.values.values()], found.metric.mean
    reach = float(student.ppf(0.975, len(losses) - 1)) * stdev(losses) / sqrt(len(losses))
    return {
        **{
            "base": Path(summary.study.run.model).name,
            "base_parameters": summary.study.params_total,
        },
        **{"data": SETUPS[setup].partition(", ")[2], "steps": summary.study.run.steps},
        "trainable": found.method.trainable,
        **{"seeds": len(losses), "loss": mean, "low": mean - reach, "high": mean + reach},
        "share": (untrained - mean) / (untrained - reference),
    }


def lost(searched: dict[str, list[Tuning]]) -> list[float]:
    """What a choice from the searches of the other bases loses of the best gain in each search, in
    validation loss.

    They choose the configuration, of any family, and its learning rate; instead of one that was not
    tried here the nearest counts.
    """
    found = []
    for number, here in enumerate(next(iter(searched.values()))):
        best = min(of[number].best for of in searched.values())
        others = {key: [one for one in of if one.base != here.base] for key, of in searched.items()}
        if all(others.values()):
            first = max(others, key=lambda key: fmean(one.share for one in others[key]))
            losses, rate = searched[first][number].losses, safe_learning_rate(others[first])
            loss = losses[min(losses, key=lambda tried: abs(log(tried / rate)))]
            found.append(1.0 if loss is None else (loss - best) / (here.untrained - best))
    return found


def regret(summary: Summary, most: int) -> tuple[str, float]:
    """What `suggest` answers within a budget on a base of `elsewhere`, and the share of the best
    gain that it loses.
    """
    known = designs()
    losses = {
        one.key: one.metric.mean
        for one in summary.results
        if one.metric
        and one.key in known
        and one.method.trainable <= known[one.key]["budget"] <= most
    }
    first = max(losses, key=lambda key: fmean(row["share"] for row in known[key]["results"]))
    untrained, best = (summary["none"].mean("test_loss") or 0), min(losses.values())
    return first, (losses[first] - best) / (untrained - best)


def left_out(tunings: list[Tuning]) -> float:
    """The most that a base loses with the rate that the searches of the others choose; 1 if they
    choose none.
    """
    of_others = ([one for one in tunings if one.base != here.base] for here in tunings)
    with suppress(ValueError):  # no learning rate is near the best of all of them
        return max(
            here.lost(safe_learning_rate(known))
            for here, known in zip(tunings, of_others, strict=True)
        )
    return 1.0


def learning_rates(tunings: list[Tuning]) -> dict[str, float]:
    """The one that is safe in all searches, under "", and the one on each base."""
    names = dict.fromkeys(["", *(one.base for one in tunings)])
    safe = {
        name: safe_learning_rate([one for one in tunings if name in ("", one.base)])
        for name in names
    }
    return {name: float(f"{rate:.3g}") for name, rate in safe.items()}


def safe_learning_rate(tunings: list[Tuning]) -> float:
    """The learning rate with the lowest cost in the search where it costs most.

    A learning rate costs the share of the gain in validation loss that it loses to the best one,
    and a part of what the next higher one loses, which tells how near failures are. Nothing is
    known above the highest, which is left out. Of a rate that was not tried the nearest counts.
    """
    costs = []
    for one in tunings:
        lost = {rate: one.lost(rate) for rate in sorted(one.losses)}
        costs.append(
            {rate: lost[rate] + NEXT_HIGHER * lost[higher] for rate, higher in pairwise(lost)}
        )
    low, high = (limit(map(each, costs)) for limit, each in ((max, min), (min, max)))
    tried = sorted(rate for rate in set().union(*costs) if low / 2 < rate < 2 * high)
    return min(
        tried,
        key=lambda rate: max(of[min(of, key=lambda one: abs(log(one / rate)))] for of in costs),
    )


def study_elsewhere(base: str, *, rates: bool = False) -> dict[str, Any]:
    """The study of designs on a base, at the learning rates that `suggest` gives without searches
    on this base.

    With `rates`, those of RATED, at these learning rates and at others.
    """
    found, methods = designs(), []
    best = sorted(found, key=lambda key: -fmean(one["share"] for one in found[key]["results"]))
    family = {key: key.partition("_")[0] for key in best}
    for most in BUDGETS:
        of = [key for key in best if found[key]["budget"] == most]
        uni = next(key for key in of if family[key] == "uni")
        first = [key for key in of if family[key] in RATED] if rates else of
        for key in dict.fromkeys([uni, *first]):  # Uni-LoRA first, whose size is the budget
            design = found[key]
            of_size = {"at_size_of": uni} if design["vary"] else {}
            fields = {
                name: design[name] for name in ("label", "method", "settings", "vary", "values")
            }
            tunings = [
                one for of in ("equal-search", "rates") for one in tuning(summaries_of(of), key)
            ]
            lr = safe_learning_rate([one for one in tunings if one.base != base]) * factor(
                key, base
            )
            methods.append({"key": key, **fields, **of_size, "lr": lr})
    return {
        "name": "rates" if rates else "elsewhere",
        "title": "The adapters of suggest on a base that no search knows",
        "question": (
            "How much do qpeft.suggest and its learning rates lose on a new base? See"
            " evidence/PROTOCOL.md."
        ),
        "reference": next(key for key in found if key.startswith(REFERENCE)),
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
        write_json(TARGET, evidence())


if __name__ == "__main__":
    main()
