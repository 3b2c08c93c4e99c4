"""The tables of a study: the same in `summary.md`, in the report and on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qpeft.compare.analysis.front import front_of
from qpeft.compare.metrics import METRICS, TRAINABLE
from qpeft.compare.report.format import (
    MISSING,
    count,
    decimal,
    interval,
    kind_of,
    mean_sd,
    metric_title,
    reached,
    settings,
    verdict,
)
from qpeft.compare.report.table import Table
from qpeft.compare.study import LEAST_RANKED
from qpeft.user_files import is_file

if TYPE_CHECKING:
    from qpeft.compare.analysis.front import OnFront
    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.analysis.types import Block, BlockMember, MethodSummary, PublishedResult, Summary
    from qpeft.compare.rows import StepTimes

Column = Callable[["MethodSummary"], str]

_CAPACITY = {
    "block_effective_rank": "Effective rank of Δy",
    "block_linear_share": "Linear share",
    "block_mean_share": "Mean share",
    "cka": "CKA to the base",
    "effective_rank": "Effective rank of Δy, modules",
    "linear_share": "Linear share, modules",
    "mean_share": "Mean share, modules",
    "jacobian_rank": "Effective rank of the Jacobian",
    "weight_effective_rank": "Effective rank of ΔW",
    "weight_numerical_rank": "Numerical rank of ΔW",
    "weight_stable_rank": "Stable rank of ΔW",
    "weight_norm_ratio": "‖ΔW‖ / ‖W‖",
}
_CAPACITY_HINTS = {
    "Effective rank of Δy": "of whole layers: comparable between all methods",
    "Linear share": "how much of Δy the best linear map of the same token explains, held out",
    "Mean share": "‖E Δy‖² / E‖Δy‖²; near 1 the update is almost a bias",
    "CKA to the base": "linear, of hidden states, mean over layers; 1: equal up to rotation and scale",
    "Effective rank of ΔW": "exp of the entropy of its singular values",
    "Numerical rank of ΔW": "singular values above 1e-6 of the largest",
    "Stable rank of ΔW": "squared Frobenius norm over squared spectral norm",
}
_OF_LAYERS = ("block_effective_rank", "block_linear_share", "block_mean_share", "cka")
_SPEEDS = [(batch, how) for batch in (1, 8) for how in ("merged", "unmerged")]
_OVER_SEEDS = "mean ± standard deviation over seeds"
_SHOWN_SHARE = 80  # of the reference's gain
_REACHED_HINT = "median; 40 (4/5): four of five seeds reached it; > 80 (2/5): two did; > 80: none"
_VERDICT_HINT = {"Verdict": "better or worse only if the interval excludes 0 after Holm's correction"}


def every(summary: Summary) -> dict[str, Table]:
    """All tables except those of the equal-budget blocks, by name."""
    makers = (
        methods,
        results,
        front,
        front_stored,
        published,
        other_metrics,
        controls,
        speed,
        tuning,
        capacity,
        costs,
        missing,
        environment,
    )
    return {make.__name__: make(summary) for make in makers}


def brief(table: Table) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table of results, with the columns that fit on a terminal."""
    left_out = ("Rank", "Stored", "Deployed", "Steps to", "Flags", "Note")
    titles = [title for title in table.columns if not title.startswith(left_out) and " of its " not in title]
    return [title.removesuffix(" parameters") for title in titles], table.frame[titles].to_numpy().tolist()


def methods(summary: Summary) -> Table:
    """What each method is."""
    notes = {method.key: method.note or "" for method in summary.study.methods}
    columns: dict[str, Column] = {
        "Method": _name(summary),
        "Name": lambda m: "" if m.label == m.key else m.label,
        "Kind": lambda m: _kind(m, summary),
        "Settings": lambda m: settings({**({"method": m.method} if is_file(m.method) else {}), **m.settings}),
        "Note": lambda m: notes[m.key],
    }
    return Table.of("methods", "All methods of the study", _all(summary), columns)


def results(summary: Summary) -> Table:
    """Quality of every method with its size, main methods and controls, best first."""
    reference = summary.study.reference
    steps = f"Steps to {_SHOWN_SHARE} % of {reference}'s gain"
    columns: dict[str, Column] = {
        "Method": _name(summary),
        "Rank": lambda m: count(m.rank),
        "Trainable parameters": lambda m: count(m.trainable),
        "Stored (kB)": lambda m: decimal(m.bytes_stored, 1, 1e3),
        "Deployed parameters": lambda m: count(m.deployed),
        _metric_title(summary): _metric(summary),
        **_differences(f"Δ to {reference}", summary, lambda m: m.difference),
        steps: lambda m: reached(m.steps_to.get(_SHOWN_SHARE)),
        "Seeds": _seeds,
        "Flags": lambda m: "; ".join(m.flags),
    }
    hints = {
        "Stored (kB)": "weights of the compact adapter, without a frame file that adapters share; mean over seeds",
        "Rank": "among main methods with at least three seeds, none failed",
        "Deployed parameters": "needed at inference in addition to the base; mean over seeds",
        steps: _REACHED_HINT,
        "Seeds": "succeeded / planned",
    }
    caption = f"{summary.metric.title} on test data, {_OVER_SEEDS}, best first, controls after their method"
    return Table.of("results", caption, summary.ordered, columns, hints | _VERDICT_HINT)


def front(summary: Summary) -> Table:
    """The best method of at most each number of trainable parameters."""
    return _front("front", "Trainable parameters", summary, lambda m: m.trainable)


def front_stored(summary: Summary) -> Table:
    """The best method of at most each number of stored bytes."""
    return _front("front-stored", "Stored bytes", summary, lambda m: m.bytes_stored)


def published(summary: Summary) -> Table:
    """Published values next to those measured."""
    name = _name(summary)
    columns: dict[str, Callable[[tuple[MethodSummary, PublishedResult]], str]] = {
        "Method": lambda line: name(line[0]),
        "Metric": lambda line: metric_title(summary.shown(line[1].metric)),
        "Published": lambda line: f"{line[1].value:,.12g}",
        "Measured": lambda line: mean_sd(line[1].measured, _decimals(line[1])),
        "Measured - published": lambda line: decimal(line[1].difference, _decimals(line[1]), sign="+"),
        "Source": lambda line: f"{line[1].source} ({line[1].note})" if line[1].note else line[1].source,
    }
    found = [(method, one) for method in _all(summary) for one in method.published]
    return Table.of("published", f"Published values, and those measured here, {_OVER_SEEDS}", found, columns)


def other_metrics(summary: Summary) -> Table:
    """Everything else that was measured on the test data."""
    columns = {"Method": _name(summary)}
    for name in (name for name in METRICS if name not in (summary.study.metric, TRAINABLE)):
        shown = summary.shown(name)
        mean = _mean(f"quality.{name}", factor=shown.factor)
        columns[metric_title(shown)] = _perplexity if name == "test_ppl" else mean
    return Table.of("further", f"Other metrics on the test data, {_OVER_SEEDS}", _all(summary), columns)


def block(block: Block, summary: Summary) -> Table:
    """The members of an equal-budget block."""
    members = {member.key: member for member in block.members}
    columns: dict[str, Column] = {
        "Method": _name(summary),
        "Rank": lambda m: count(members[m.key].rank),
        "Trainable parameters": lambda m: count(m.trainable),
        "% of the budget": lambda m: f"{100 * members[m.key].ratio:.1f}",
        _metric_title(summary): _metric(summary),
        **_differences(f"Δ to {block.of}", summary, lambda m: members[m.key].difference),
        "Seeds": _seeds,
        "Note": lambda m: _note(members[m.key]),
    }
    caption = f"Budget: the {count(block.budget)} trainable parameters of {block.of}; {_OVER_SEEDS}"
    return Table.of(f"block-{block.of}", caption, [summary[key] for key in members], columns, _VERDICT_HINT)


def controls(summary: Summary) -> Table:
    """Each control with its method."""
    metric, name = _metric(summary), _name(summary)
    columns: dict[str, Column] = {
        "Method": name,
        "Control of": lambda m: name(summary[str(m.against)]),
        "Trainable parameters": lambda m: count(m.trainable),
        _metric_title(summary): metric,
        _metric_title(summary, " of its method"): lambda m: metric(summary[str(m.against)]),
        **_differences("Δ to its method", summary, lambda m: m.difference_to_target),
        "Seeds": _seeds,
    }
    found = [method for method in summary.ordered if method.against is not None]
    return Table.of("controls", f"Controls and their methods, {_OVER_SEEDS}", found, columns, _VERDICT_HINT)


def tuning(summary: Summary) -> Table:
    """Every learning rate that was tried, with the lowest validation loss of its trial."""
    found = [method for method in _all(summary) if summary.rows[method.key].trials]
    n_trials = max((len(summary.rows[m.key].trials) for m in found), default=0)
    columns: dict[str, Column] = {
        "Method": _name(summary),
        "Chosen": lambda m: "" if m.lr is None else f"{m.lr:g}",
        **{f"Trial {i + 1}": lambda m, i=i: _trial(m, i, summary) for i in range(n_trials)},
    }
    return Table.of(
        "tuning", "Learning rates tried, and the lowest validation loss of each (✓: chosen)", found, columns
    )


def speed(summary: Summary) -> Table:
    """How fast each method learns."""
    area = f"Area under the loss curve ({summary.loss_unit})"
    titles = {share: f"{share} % of {summary.study.reference}'s gain" for share in summary.targets}
    columns: dict[str, Column] = {
        "Method": _name(summary),
        **{f"Steps to {title}": lambda m, p=p: reached(m.steps_to.get(p)) for p, title in titles.items()},
        area: _mean("convergence.auc_per_token"),
        f"Last validation loss ({summary.loss_unit})": _mean("quality.valid_loss_last"),
        "Best step": _mean("quality.best_step", 1),
        **{f"Seconds to {title}": lambda m, p=p: reached(m.seconds_to.get(p), 1) for p, title in titles.items()},
        "Training (s, shared machine)": _mean("train.seconds", 1),
        "Gradient spikes per seed": _mean("convergence.spikes", 1),
    }
    hints = {f"Steps to {title}": _REACHED_HINT for title in titles.values()}
    hints[area] = "under the validation loss, by trapezoids, divided by the number of steps"
    caption = f"How fast each method learns: medians of steps and seconds, otherwise {_OVER_SEEDS}"
    return Table.of("convergence", caption, _all(summary), columns, hints)


def capacity(summary: Summary) -> Table:
    """Properties of each adapter's update. Those of modules are left out where a method adapts none."""
    found = [m for m in _all(summary) if any(name.startswith("capacity.") for name in m.measurements)]

    def of(key: str) -> Column:
        shown = _mean(f"capacity.{key}", 3)
        return shown if key in _OF_LAYERS else lambda m: "" if _adapts_no_module(m) else shown(m)

    columns = {"Method": _name(summary), **{title: of(key) for key, title in _CAPACITY.items()}}
    return Table.of("capacity", f"Properties of each update, {_OVER_SEEDS}", found, columns, _CAPACITY_HINTS)


def costs(summary: Summary) -> Table:
    """Parameters, bytes, time."""
    ratio = f"Step \u00d7 {summary.study.reference}"

    def tokens_per_second(batch: int, how: str) -> Column:
        return lambda m: decimal((m.cost.infer_tok_s or {}).get(f"batch_{batch}", {}).get(how), 0)

    columns: dict[str, Column] = {
        "Method": _name(summary),
        "Trainable parameters": lambda m: count(m.trainable),
        "Deployed parameters": lambda m: count(m.deployed),
        "Generator parameters": lambda m: count(m.generator),
        "Stored (kB)": lambda m: decimal(m.bytes_stored, 1, 1e3),
        "Optimizer (kB)": lambda m: decimal(_stat(m, "cost.optimizer_bytes"), 1, 1e3),
        "Step (ms), median (p10 to p90)": lambda m: _step(m.cost.step_ms),
        ratio: lambda m: decimal(m.cost.step_ratio, 2),
        "Peak memory (MB)": lambda m: decimal(m.cost.peak_mem_bytes, 1, 1e6),
        **{f"Generation (tokens/s), batch {n}, {how}": tokens_per_second(n, how) for n, how in _SPEEDS},
        "Overhead, unmerged (%)": lambda m: decimal(m.cost.infer_overhead_pct, 0),
        "Noise (%)": lambda m: decimal(None if m.cost.noise is None else 100 * m.cost.noise, 0),
        "MFLOP per token": lambda m: decimal(m.cost.flops_per_token, 2, 1e6),
    }
    hints = {
        "Generator parameters": "enough to regenerate the deployed ones",
        ratio: "against the reference, measured in alternation on the same machine",
        "Overhead, unmerged (%)": "of generation, compared with the base in the same run",
        "Noise (%)": "difference between two measurements of the reference's step, or of the base's generation",
    }
    found = [m for m in _all(summary) if m.cost.model_fields_set or m.bytes_stored]
    return Table.of("costs", "Costs of each method", found, columns, hints)


def missing(summary: Summary) -> Table:
    """Measurements that are null, with the reasons that their rows give."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for method in summary.ordered:
        for name, reason in method.null_reasons.items():
            by_reason.setdefault((reason, name), []).append(method.key)
    lines: dict[tuple[str, str], list[str]] = {}
    for (reason, name), keys in sorted(by_reason.items()):
        shown = "all" if len(keys) == len(summary.ordered) else ", ".join(keys)
        lines.setdefault((reason, shown), []).append(name)
    columns: dict[str, Callable[[tuple[str, str]], str]] = {
        "Reason": lambda line: line[0],
        "Methods": lambda line: line[1],
        "Measurements": lambda line: ", ".join(lines[line]),
    }
    return Table.of("missing", "Measurements that are missing, and why", list(lines), columns)


def environment(summary: Summary) -> Table:
    """Base, data, versions and machines, each with every value that the rows name."""
    found: dict[str, dict[str, None]] = {}
    for row in summary.present_rows:
        for key, value in row.env.to_json().items():
            if value is not None:
                found.setdefault(key, {})[str(value)] = None
    base, data = summary.study.base, summary.study.data
    lines = {
        "base": f"{base.id}, {base.params_total:,} parameters, {base.dtype}",
        "base, SHA-256": base.sha256,
        "data": data.id,
        "data, SHA-256": data.sha256,
        **{key: "; ".join(values) for key, values in sorted(found.items())},
    }
    columns: dict[str, Callable[[str], str]] = {"What": lambda key: key, "Value": lambda key: lines[key]}
    return Table.of("environment", "Base, data, versions and machines of the rows", list(lines), columns)


def _front(name: str, title: str, summary: Summary, size: Callable[[MethodSummary], float | None]) -> Table:
    method, metric = _name(summary), _metric(summary)

    def mean_interval(one: OnFront) -> str:
        stats = one.method.metric
        if stats is None or stats.half_width is None:
            return MISSING
        factor = summary.metric.factor
        return f"[{', '.join(decimal(factor * (stats.mean + side * stats.half_width)) for side in (-1, 1))}]"

    columns: dict[str, Callable[[OnFront], str]] = {
        "Method": lambda one: method(one.method),
        title: lambda one: count(one.size),
        _metric_title(summary): lambda one: metric(one.method),
        "95 % interval": mean_interval,
        "No difference shown from": lambda one: ", ".join(other.key for other in one.rivals),
    }
    caption = f"The best of at most so many {title.lower()}: every other method is larger or worse; {_OVER_SEEDS}"
    hints = {"No difference shown from": "methods of at most this size; intervals paired by seed, without correction"}
    return Table.of(name, caption, front_of(summary, size), columns, hints)


def _all(summary: Summary) -> list[MethodSummary]:
    found = summary.ordered
    return found + [method for method in summary.methods if method not in found]


def _name(summary: Summary) -> Column:
    """The key after the sign of its kind, controls indented."""
    return lambda m: f"{'↳ ' if m.against else ''}{kind_of(m, summary).sign} {m.key}"


def _kind(method: MethodSummary, summary: Summary) -> str:
    kind = kind_of(method, summary).title + (f" of {method.against}" if method.against else "")
    return kind + (", equal budget" if method.role == "equal_budget" else "")


def _metric_title(summary: Summary, of: str = "") -> str:
    return f"{summary.metric.title}{of} ({summary.metric.unit})"


def _decimals(found: PublishedResult) -> int:
    return 0 if found.metric == TRAINABLE else 4


def _metric(summary: Summary) -> Column:
    factor = summary.metric.factor

    def shown(method: MethodSummary) -> str:
        if method.metric is None or method.has_improved:
            return mean_sd(method.metric, factor=factor)
        return f"{decimal(factor * method.metric.mean)} (not improved)"  # a spread of 0 would look like precision

    return shown


def _mean(name: str, decimals: int = 4, factor: float = 1.0) -> Column:
    return lambda m: mean_sd(m.measurements.get(name), decimals, factor)


def _differences(title: str, summary: Summary, of: Callable[[MethodSummary], Difference | None]) -> dict[str, Column]:
    return {
        f"{title} [95 % interval]": lambda m: interval(of(m), summary.metric.factor),
        "Verdict": lambda m: verdict(of(m)),
    }


def _seeds(method: MethodSummary) -> str:
    return f"{method.ok}/{len(method.statuses)}"


def _note(member: BlockMember) -> str:
    if member.over_budget:
        return "over the budget, not ranked"
    return f"below {100 * LEAST_RANKED:.0f} % of the budget, not ranked" if member.ratio < LEAST_RANKED else ""


def _trial(method: MethodSummary, index: int, summary: Summary) -> str:
    trials = summary.rows[method.key].trials
    if index >= len(trials):
        return ""
    lr, row = trials[index]
    outcome = "missing" if row is None else decimal(row.quality.valid_loss) if row.succeeded else row.status
    return f"{lr:g}: {outcome}{' ✓' if lr == method.lr else ''}"


def _perplexity(method: MethodSummary) -> str:
    """`inf-like` where the loss is too large for its exponential to mean anything."""
    from qpeft.training.metrics import HOPELESS_LOSS

    loss = _stat(method, "quality.test_loss")
    if "quality.test_ppl" not in method.measurements and loss is not None and loss > HOPELESS_LOSS:
        return "inf-like"
    return _mean("quality.test_ppl", 2)(method)


def _adapts_no_module(method: MethodSummary) -> bool:
    return _stat(method, "capacity.n_modules") == 0


def _stat(method: MethodSummary, name: str) -> float | None:
    """The mean over seeds."""
    stats = method.measurements.get(name)
    return None if stats is None else stats.mean


def _step(times: StepTimes | None) -> str:
    if times is None or times.median is None or times.p10 is None or times.p90 is None:
        return decimal(times and times.median, 1)
    return f"{decimal(times.median, 1)} ({times.p10:.1f} to {times.p90:.1f})"
