"""What a study does not show: fixed sentences, and those that depend on its rows."""

from __future__ import annotations

from collections.abc import Iterator

from qpeft.compare.analysis.sentences import NOT_IMPROVED, capital
from qpeft.compare.analysis.statistics import MIN_SEEDS
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.study import LEAST_RANKED, is_ranked

MOST_NOISE = 0.1
SIMULATED = "All quantum circuits are simulated on classical hardware; no quantum speed-up is shown or implied."


def limits_of(summary: Summary) -> list[str]:
    """Every sentence, the most important first."""
    simulated = [SIMULATED] if any(method.kind == "quantum" for method in summary.methods) else []
    notes = [method.report_note for method in summary.study.methods if method.report_note]
    return [
        *simulated,
        *dict.fromkeys(notes),
        *_controls(summary),
        *_scope(summary),
        *_seeds(summary),
        *_unfair(summary),
    ]


def unfinished(summary: Summary) -> str:
    """How many runs are missing; empty for a complete study."""
    statuses = [status for method in summary.methods for status in method.statuses.values()]
    n = statuses.count("missing")
    return f"{n:,} of {len(statuses):,} runs are missing: the study is not finished." if n else ""


def _controls(summary: Summary) -> Iterator[str]:
    """Controls that are not shown to be worse than their methods; an interval around 0 does not prove equality."""
    lower = summary.lower_is_better
    for control in summary.methods:
        found = control.difference_to_target
        if found is None or found.low is None or found.high is None or found.n < MIN_SEEDS or control.has_failures:
            continue
        if found.low > 0 if lower else found.high < 0:
            continue
        is_better = found.high < 0 if lower else found.low > 0
        verdict = "performs better than" if is_better else "is not shown to differ from"
        interval = f"difference {found.mean:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}"
        yield f"{capital(control.label)} {verdict} {summary[found.to].label} here ({interval})."


def _scope(summary: Summary) -> Iterator[str]:
    study = summary.study
    where = f"One base ({study.base.id}), one data set ({study.data.id}), {study.training.steps:,} steps"
    yield f"{where}: others may rank the methods differently."
    if summary.n_comparisons:
        yield (
            '"Better" and "worse" require that the 95 % t interval of the difference, paired by seed, excludes 0 with '
            f"at least {MIN_SEEDS} seeds, after Holm's correction over {summary.n_comparisons} comparisons."
        )
        yield "Intervals cover the variation over seeds only, not over the choice of test data."


def _seeds(summary: Summary) -> Iterator[str]:
    """Methods with few, failed or missing seeds."""
    methods = summary.methods
    if names := _names([m for m in methods if not m.has_improved]):
        yield f"Training did {NOT_IMPROVED}: {names}. The values in the tables are those before training."
    if names := _names([m for m in methods if m.metric is not None and m.metric.n < MIN_SEEDS]):
        yield f"Preliminary, with fewer than {MIN_SEEDS} seeds, and not ranked: {names}."
    if names := _names([m for m in methods if m.has_failures]):
        yield f"Seeds failed or diverged: {names}. Such a method is not ranked, and no verdict favors it."
    if missing := unfinished(summary):
        yield missing


def _unfair(summary: Summary) -> Iterator[str]:
    """Comparisons on shared data, or under unequal conditions: budgets, learning rates, hardware, batches."""
    yield from summary.study.data.notes
    if names := _names([m for m in summary.methods if _has_several_rates(summary, m)]):
        yield f"Seeds were trained with different learning rates: {names}. Run the study again to finish it."
    if names := "; ".join(_unequal_controls(summary)):
        yield f"Controls with another number of trainable parameters than their method: {names}. This may matter."
    for block in summary.blocks:
        outside = [f"{summary[m.key].label} ({100 * m.ratio:.3g} %)" for m in block.members if not is_ranked(m.ratio)]
        if outside:
            start = f"At the {block.budget:,} trainable parameters of {summary[block.of].label}"
            names = "; ".join(outside)
            yield f"{start} these methods are outside 80 to 100 % of the budget and not ranked: {names}."
    yield from left_out(summary)
    yield from _unknown_tokens(summary)
    if noise := noisy_costs(summary):
        yield noise
    machines = sorted({m.hardware for m in summary.methods if m.hardware is not None})
    if len(machines) > 1:
        yield f"Costs were measured on different hardware ({'; '.join(machines)}), so times are not comparable."
    orders: dict[int, set[str]] = {}
    for method in summary.study.methods:
        for seed, row in summary.rows[method.key].successes.items():
            if method.rates and (sha := row.data.order_sha256):
                orders.setdefault(seed, set()).add(sha)
    if unequal := [str(seed) for seed, found in orders.items() if len(found) > 1]:
        yield f"The methods did not see the same batches with seed {', '.join(unequal)}: differences are not paired."


def _unequal_controls(summary: Summary) -> Iterator[str]:
    for control in summary.methods:
        size = summary[control.against].trainable if control.against else 0
        if size and not LEAST_RANKED <= control.trainable / size <= 1 / LEAST_RANKED:
            yield f"{control.label} ({100 * control.trainable / size:.3g} %)"


def _has_several_rates(summary: Summary, method: MethodSummary) -> bool:
    return len({row.train.lr for row in summary.rows[method.key].successes.values()}) > 1


def noisy_costs(summary: Summary) -> str:
    """A warning if measurements of the reference and of its twin differ; empty otherwise."""
    if summary.cost_noise is None or summary.cost_noise <= MOST_NOISE:
        return ""
    return (
        f"Times are unreliable: two measurements of the same model differ by up to {summary.cost_noise:.0%}, so "
        "differences between methods of this size mean nothing. Something else ran on the machine; measure again with "
        "another --out and --reuse with the folder of this study."
    )


def left_out(summary: Summary) -> list[str]:
    """Warnings of rows of the data that are not used."""
    return list(dict.fromkeys(f"{text}." for row in summary.present_rows for text in row.data.left_out))


def _unknown_tokens(summary: Summary) -> Iterator[str]:
    splits = [row.data.splits for row in summary.present_rows]
    shares = (found.get("test_unknown_tokens", 0) / n for found in splits if (n := found.get("test_tokens")))
    if share := next(filter(None, shares), 0):
        yield (
            f"{share:.1%} of the scored test tokens are unknown to the tokenizer: the text they stand for is lost, and "
            "losses and bits per byte are too low."
        )


def _names(methods: list[MethodSummary]) -> str:
    return "; ".join(method.label for method in methods)
