"""Tables of what `qpeft.suggest` rests on, and of what its answers lose on other bases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

from scipy.stats import kendalltau, spearmanr

import comparisons
import smollm2_tables
import suggest_evidence
from qpeft_lab.compare.summary import Summary
from table_text import table
from winners import BUDGETS, SETUPS, summaries_of


class Correlation(NamedTuple):
    """A rank correlation with an interval of 95 %, over n adapters."""

    value: float
    low: float
    high: float
    n: int


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """Spearman's; the interval is that of Bonett and Wright (2000): artanh of the correlation is nearly normal,
    with variance (1 + r^2 / 2) / (n - 3).
    """
    value = float(spearmanr(xs, ys).statistic)
    return _correlation(value, variance=(1 + value**2 / 2) / (len(xs) - 3), n=len(xs))


def kendall_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """Kendall's tau; artanh of it is nearly normal, with variance 0.437 / (n - 4) (Fieller and
    others, 1957).
    """
    value = float(kendalltau(xs, ys).statistic)
    return _correlation(value, variance=0.437 / (len(xs) - 4), n=len(xs))


def _correlation(value: float, variance: float, n: int) -> Correlation:
    """With the interval of 95 % for artanh of it, whose variance this is."""
    reach = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    middle = math.atanh(value) if abs(value) < 1 else math.copysign(math.inf, value)
    return Correlation(value, math.tanh(middle - reach), math.tanh(middle + reach), n)


def order() -> str:
    """Do adapters keep their order on a base that the evidence does not know?

    The order of the evidence is that of the mean share of LoRA's gain, the other that of test loss.
    """
    summaries = summaries_of("elsewhere")
    rows = []
    for budget in BUDGETS:
        texts = []
        for summary in summaries.values():
            value, low, high, n = order_within(summary, budget)
            texts.append(f"{n} adapters: {value:.2f} [{low:.2f}, {high:.2f}]")
        rows.append([f"{budget:,}", *texts])
    return table(["parameters, at most", *(SETUPS[setup] for setup in summaries)], rows)


def order_500() -> str:
    """Stage 2: Kendall's tau of the order on SmolLM2 with that on the small bases, also within those
    in frames of the gradient and within the others.
    """
    rows = []
    for budget in smollm2_tables.SMALL_BUDGETS:
        known = {each.family: each.small_share for each in smollm2_tables.ordered(budget)}
        here = {each.family: -each.best.test_loss for each in smollm2_tables.ordered(budget)}
        rows += [[f"{budget:,}", *row] for row in _taus(known, here)]
    return table(["parameters", "adapters", "number", "Kendall's tau"], rows, numbers=2)


def order_on_shakespeare() -> str:
    """Stage 7: Kendall's tau of the order on Shakespeare with that on the E2E references."""
    adapters = smollm2_tables.shakespeare()
    known = {each.result.key: -each.on_e2e for each in adapters}
    here = {each.result.key: -each.loss for each in adapters}
    return table(["adapters", "number", "Kendall's tau"], _taus(known, here), numbers=2)


def _taus(known: dict[str, float], here: dict[str, float]) -> list[list[str]]:
    """Of all families, of those in frames of the gradient, and of the others."""
    framed = [family for family in known if family in smollm2_tables.FRAMED]
    groups = {
        "all": list(known),
        "in frames of the gradient": framed,
        "the others": [family for family in known if family not in framed],
    }
    rows = []
    for label, group in groups.items():
        value, low, high, n = kendall_correlation(
            [known[family] for family in group], [here[family] for family in group]
        )
        # the approximation needs more than a handful
        interval = f" [{low:.2f}, {high:.2f}]" if n > 5 else ""
        rows.append([label, f"{n}", f"{value:.2f}{interval}"])
    return rows


def order_within(summary: Summary, budget: int) -> Correlation:
    """Over the designs of a budget that fit into it on this base."""
    designs = suggest_evidence.designs()
    losses = suggest_evidence.losses_of_designs(summary, budget)
    of_budget = [key for key in losses if designs[key]["budget"] == budget]
    known = [suggest_evidence.mean_share(designs[key]) for key in of_budget]
    here = [-losses[key] for key in of_budget]
    return rank_correlation(known, here)


def regrets() -> str:
    """What `suggest` answers on bases that its evidence does not know, and the share of the best
    gain that it loses, with its interval.
    """
    summaries = summaries_of("elsewhere")
    rows = []
    for budget in BUDGETS:
        texts = []
        for summary in summaries.values():
            regret = suggest_evidence.regret(summary, budget)
            label = suggest_evidence.designs()[regret.answer]["label"]
            family = label.partition(",")[0]
            texts.append(f"{family}: {regret_text(summary, regret)}")
        rows.append([f"{budget:,}", *texts])
    return table(["parameters, at most", *(SETUPS[setup] for setup in summaries)], rows)


def regret_text(summary: Summary, regret: suggest_evidence.Regret) -> str:
    """In per cent of the best gain; without an interval if the answer is the best."""
    text = f"{100 * regret.share:.1f} %"
    if regret.answer == regret.best:
        return text
    best_gain = comparisons.mean_loss(summary["none"]) - comparisons.mean_loss(summary[regret.best])
    lost = comparisons.difference(
        comparisons.block_losses(summary[regret.answer]),
        comparisons.block_losses(summary[regret.best]),
    )
    low, high = lost.times(100 / best_gain).interval()
    return f"{text} [{low:+.1f}, {high:+.1f}]"


def rates() -> str:
    """The largest part of the best learning rate's gain that one of `suggest` loses; in brackets,
    without this base.
    """
    searches = summaries_of("equal-search") | summaries_of("rates")
    rows = []
    for family, name in suggest_evidence.RATED.items():
        losses: dict[str, list[tuple[float, float]]] = {setup: [] for setup in searches}
        for tunings in tunings_of(family, searches):
            rate = suggest_evidence.safe_learning_rate(tunings)
            for here in tunings:
                others = [each for each in tunings if each.base != here.base]
                rate_of_others = suggest_evidence.safe_learning_rate(others)
                losses[here.setup].append((here.lost(rate), here.lost(rate_of_others)))
        worst = [[100 * max(kind) for kind in zip(*of, strict=True)] for of in losses.values()]
        rows.append([name, *(f"{own:.0f} ({other:.0f})" for own, other in worst)])
    return table(["lost, in per cent", *(SETUPS[setup] for setup in searches)], rows)


def powers() -> str:
    """What a learning rate that grows with a power of a quantity loses on a base whose searches did
    not choose it.
    """
    searches = summaries_of("equal-search") | summaries_of("rates")
    rows = []
    for grows in [("width", 0.0), *product(suggest_evidence.QUANTITIES, suggest_evidence.POWERS)]:
        quantity, power = grows
        texts = [f"{quantity}, power {power:g}" if power else "nothing"]
        for family in suggest_evidence.RATED:
            lost = map(suggest_evidence.left_out, tunings_of(family, searches, grows))
            texts.append(f"{100 * max(lost):.0f}")
        rows.append(texts)
    header = ["a rate that grows with", *suggest_evidence.RATED.values()]
    return table(header, rows, numbers=len(suggest_evidence.RATED))


def tunings_of(
    family: str, searches: dict[str, Summary], grows: tuple[str, float] | None = None
) -> list[list[suggest_evidence.Tuning]]:
    """Those of each design of a family, in all searches."""
    keys = [key for key in suggest_evidence.designs() if key.startswith(f"{family}_")]
    return [suggest_evidence.tuning(searches, key, grows) for key in keys]
