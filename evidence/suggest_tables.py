"""Tables of what `qpeft.suggest` rests on, and of what its answers lose on other bases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

from scipy.stats import spearmanr

import comparisons
import suggest_evidence
from qpeft_lab.compare.summary import Summary
from table_text import table
from winners import BUDGETS, SETUPS, summaries_of


class Correlation(NamedTuple):
    """Spearman's rank correlation with an interval of 95 %, over n adapters."""

    value: float
    low: float
    high: float
    n: int


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """The interval is that of Bonett and Wright (2000): artanh of the correlation is nearly normal,
    with variance (1 + r^2 / 2) / (n - 3).
    """
    value = float(spearmanr(xs, ys).statistic)
    error = math.sqrt((1 + value**2 / 2) / (len(xs) - 3))
    reach = NormalDist().inv_cdf(0.975) * error
    middle = math.atanh(value)
    return Correlation(value, math.tanh(middle - reach), math.tanh(middle + reach), len(xs))


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
    searches = {**summaries_of("equal-search"), **summaries_of("rates")}
    rows = []
    for family, name in suggest_evidence.RATED.items():
        lost_with = dict.fromkeys(searches, 0.0)
        lost_without = dict.fromkeys(searches, 0.0)
        for key in suggest_evidence.designs():
            if not key.startswith(f"{family}_"):
                continue
            tunings = suggest_evidence.tuning(searches, key)
            for here in tunings:
                others = [tuning for tuning in tunings if tuning.base != here.base]
                for lost, known in ((lost_with, tunings), (lost_without, others)):
                    here_lost = here.lost(suggest_evidence.safe_learning_rate(known))
                    lost[here.setup] = max(lost[here.setup], here_lost)
        texts = [f"{100 * lost_with[s]:.0f} ({100 * lost_without[s]:.0f})" for s in searches]
        rows.append([name, *texts])
    return table(["lost, in per cent", *(SETUPS[setup] for setup in searches)], rows)


def powers() -> str:
    """What a learning rate that grows with a power of a quantity loses on a base whose searches did
    not choose it.
    """
    searches = {**summaries_of("equal-search"), **summaries_of("rates")}
    grows = [("width", 0.0), *product(suggest_evidence.QUANTITIES, suggest_evidence.POWERS)]
    rows = []
    for quantity, power in grows:
        lost = dict.fromkeys(suggest_evidence.RATED, 0.0)
        for key in suggest_evidence.designs():
            family = key.partition("_")[0]
            if family in lost:
                tunings = suggest_evidence.tuning(searches, key, (quantity, power))
                lost[family] = max(lost[family], suggest_evidence.left_out(tunings))
        name = f"{quantity}, power {power:g}" if power else "nothing"
        rows.append([name, *(f"{100 * most:.0f}" for most in lost.values())])
    header = ["a rate that grows with", *suggest_evidence.RATED.values()]
    return table(header, rows, numbers=len(suggest_evidence.RATED))
