"""The comparisons of one study as one family, so that many of them do not make one look real by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qpeft.compare.analysis.statistics import (
    BETTER,
    LEVEL,
    NO_DIFFERENCE,
    WORSE,
    Difference,
    holm,
    paired_difference,
)

Pair = tuple[str, str]  # a method's key and the key of the method it is compared with


def compare(
    pairs: list[Pair], values: Mapping[str, Mapping[int, float]], failed: set[str], lower_is_better: bool
) -> dict[Pair, Difference]:
    """Every pair that shares a seed, with verdicts after Holm's correction over all of them.

    `values`: the metric by method and seed. `failed`: the methods of which a seed failed or diverged. The seeds that
    are left are the fortunate ones, so no verdict may favour such a method.
    """
    found = {
        (key, to): difference
        for key, to in dict.fromkeys(pairs)
        if (difference := paired_difference(values[key], values[to], to, lower_is_better)) is not None
    }
    corrected = _holm_over_pairs(found)
    return {pair: _judge(pair, difference, corrected.get(pair), failed) for pair, difference in found.items()}


def _holm_over_pairs(found: Mapping[Pair, Difference]) -> dict[Pair, float]:
    """The adjusted p values; a pair and its reverse ask the same question and count once."""
    questions = {frozenset(pair): difference.p for pair, difference in found.items() if difference.p is not None}
    adjusted = dict(zip(questions, holm(list(questions.values())), strict=True))
    return {pair: adjusted[frozenset(pair)] for pair in found if frozenset(pair) in adjusted}


def _judge(pair: Pair, difference: Difference, p_holm: float | None, failed: set[str]) -> Difference:
    verdict = difference.verdict_alone
    if p_holm is not None and p_holm >= 1 - LEVEL:
        verdict = NO_DIFFERENCE
    favoured = {BETTER: pair[0], WORSE: pair[1]}.get(verdict)
    if favoured in failed:
        verdict = NO_DIFFERENCE
    return replace(difference, p_holm=p_holm, verdict=verdict)
