"""The tables of a study: the same in `summary.md`, in the report and on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qpeft.compare.report.format import (
    count,
    decimal,
    interval,
    loss_unit,
    mean_sd,
    metric_factor,
    metric_name,
    metric_unit,
    rate,
    reached,
    settings,
    verdict,
)
from qpeft.compare.report.kinds import kind_of
from qpeft.compare.report.table import Table
from qpeft.compare.study import LEAST_RANKED

if TYPE_CHECKING:
    from qpeft.compare.analysis.statistics import Difference, Stats
    from qpeft.compare.analysis.types import Block, BlockMember, MethodSummary, Summary
    from qpeft.compare.rows import Row

Name = Callable[["MethodSummary"], str]

_QUALITY = {
    "test_loss": "Test loss",
    "test_ppl": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "test_accuracy": "Accuracy",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bertscore_f1": "BERTScore F1",
    "forgetting_shifted": "Forgetting (nats)",
}
_CAPACITY_OF_LAYERS = {
    "block_effective_rank": "Effective rank of Δy",
    "block_linear_share": "Linear share",
    "block_mean_share": "Mean share",
    "cka": "CKA to the base",
}
_CAPACITY_OF_MODULES = {
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
_TARGETS = {"half_of_full": "50 % of full's gain", "ninety_of_full": "90 % of full's gain"}
_HINT_OF_VERDICT = "better or worse only if the interval excludes 0 after Holm's correction"


def plain_name(method: MethodSummary) -> str:
    return method.key


def brief(table: Table) -> Table:
    """The columns of a table of results that fit on a terminal."""
    left_out = ("Rank", "Deployed", "Steps to", "Flags", "Note")
    return table.only([title for title in table.columns if not title.startswith(left_out) and " of its " not in title])


def methods(summary: Summary) -> Table:
    """What each method is."""
    found = _all(summary)
    notes = {method.key: method.note or "" for method in summary.study.methods}
    columns = {
        "Method": map(_marked(summary), found),
        "Name": ("" if m.label == m.key else m.label for m in found),
        "Kind": (_kind(m, summary) for m in found),
        "Settings": (settings(m.settings) for m in found),
        "Note": (notes[m.key] for m in found),
    }
    return Table.of("methods", "All methods of the study", columns)


def overview(summary: Summary) -> Table:
    """Everything in one table, a line per method: the table of `summary.md`."""
    found = summary.methods
    columns = {
        "method": (m.label for m in found),
        "trainable": (count(m.trainable) for m in found),
        "deployed": (count(m.deployed) for m in found),
        "bytes": (count(m.bytes_stored) for m in found),
        "metric, mean ± s.d.": (mean_sd(m.metric) for m in found),
        "perplexity": map(_perplexity, found),
        "Δ [95 % interval]": (interval(m.difference) for m in found),
        "verdict": ("" if m.difference is None else m.difference.verdict for m in found),
        "steps to the reference's loss": (reached(m.steps_to.get("reference")) for m in found),
        "step ms (\u00d7 the reference's)": map(_step_with_ratio, found),
        "peak MB": (count(_mega(m.cost.get("peak_mem_bytes"))) for m in found),
        "tokens/s": (count(_generation_speed(m)) for m in found),
        "effective rank": (mean_sd(m.figures.get("capacity.effective_rank"), 2) for m in found),
        "linear share": (mean_sd(m.figures.get("capacity.linear_share"), 2) for m in found),
        "seeds": (f"{m.ok}/{len(m.statuses)}" for m in found),
        "flags": ("; ".join(m.flags) for m in found),
    }
    return Table.of("overview", "All methods", columns)


def results(summary: Summary, name: Name | None = None) -> Table:
    """Quality of every method next to its size, main methods and controls, best first."""
    found, reference = summary.ordered, summary.study.reference
    columns = {
        "Method": map(name or _marked(summary), found),
        "Rank": (count(m.rank) for m in found),
        "Trainable parameters": (count(m.trainable) for m in found),
        "Deployed parameters": (count(m.deployed) for m in found),
        **_metric(found, summary),
        **_differences(f"Δ to {reference}", [m.difference for m in found], summary),
        f"Steps to {reference}'s loss": (reached(m.steps_to.get("reference")) for m in found),
        "Seeds": (f"{m.ok}/{len(m.statuses)}" for m in found),
        "Flags": ("; ".join(m.flags) for m in found),
    }
    hints = {
        "Rank": "among main methods with at least three seeds, none failed",
        "Deployed parameters": "needed at inference in addition to the base; mean over seeds",
        "Verdict": _HINT_OF_VERDICT,
        f"Steps to {reference}'s loss": "first evaluation at or below it; > 150 (3/5): three of five seeds reached it",
        "Seeds": "succeeded / planned",
    }
    return Table.of("results", f"{metric_name(summary)} on test data, best first", columns, **hints)


def other_metrics(summary: Summary) -> Table:
    """Everything else that was measured on the test data."""
    found = summary.ordered
    columns = {"Method": list(map(_marked(summary), found))}
    for key, title in _QUALITY.items():
        if key != summary.study.metric:
            columns[title] = [mean_sd(m.figures.get(f"quality.{key}")) for m in found]
    return Table.of("further", "Other metrics on the test data, mean ± s.d.", columns)


def block(block: Block, summary: Summary, name: Name | None = None) -> Table:
    """The members of an equal-budget block."""
    members, found = block.members, [summary[member.key] for member in block.members]
    columns = {
        "Method": map(name or _marked(summary), found),
        "Rank": (count(member.rank) for member in members),
        "Trainable parameters": (count(member.trainable) for member in members),
        "% of the budget": (f"{100 * member.ratio:.1f}" for member in members),
        **_metric(found, summary),
        **_differences(f"Δ to {block.of}", [member.difference for member in members], summary),
        "Seeds": (f"{m.ok}/{len(m.statuses)}" for m in found),
        "Note": map(_note, members),
    }
    caption = f"Budget: the {count(block.budget)} trainable parameters of {block.of}"
    return Table.of(f"block-{block.of}", caption, columns, Verdict=_HINT_OF_VERDICT)


def controls(summary: Summary, name: Name | None = None) -> Table:
    """Each control next to its method."""
    found = [method for method in summary.ordered if method.against is not None]
    targets = [summary[str(method.against)] for method in found]
    columns = {
        "Method": map(name or _marked(summary), found),
        "Control of": map(name or _marked(summary), targets),
        "Trainable parameters": (count(m.trainable) for m in found),
        **_metric(found, summary),
        **_metric(targets, summary, " of its method"),
        **_differences("Δ to its method", [m.difference_to_target for m in found], summary),
        "Seeds": (f"{m.ok}/{len(m.statuses)}" for m in found),
    }
    return Table.of("controls", "Controls next to their methods", columns, Verdict=_HINT_OF_VERDICT)


def tuning(summary: Summary) -> Table:
    """Every learning rate that was tried, with the lowest validation loss of its trial."""
    found = [method for method in _all(summary) if summary.tuning.get(method.key)]
    n_trials = max((len(summary.tuning[m.key]) for m in found), default=0)
    lost = {(row.method, rate(lr)): row.status for row in summary.failures if (lr := _rate_of_trial(row))}
    columns = {"Method": list(map(_marked(summary), found)), "Chosen": [rate(m.lr) for m in found]}
    for index in range(n_trials):
        columns[f"Trial {index + 1}"] = [_trial(m, index, summary, lost) for m in found]
    columns["Edge of the grid"] = [m.lr_at_edge or "" for m in found]
    return Table.of("tuning", "Learning rates tried, and the lowest validation loss of each (✓: chosen)", columns)


def speed(summary: Summary) -> Table:
    """How fast each method learns."""
    found, unit = summary.ordered, loss_unit(summary)
    targets = {
        name: _TARGETS.get(name, f"{summary.study.reference}'s loss")
        for name, loss in summary.targets.items()
        if loss is not None
    }
    columns = {
        "Method": map(_marked(summary), found),
        f"Mean validation loss ({unit})": (mean_sd(m.figures.get("convergence.auc_per_token")) for m in found),
        f"Last validation loss ({unit})": (mean_sd(m.figures.get("quality.valid_loss_last")) for m in found),
        "Best step": (mean_sd(m.figures.get("quality.best_step"), 1) for m in found),
        **{f"Steps to {title}": [reached(m.steps_to.get(t)) for m in found] for t, title in targets.items()},
        **{f"Seconds to {title}": [reached(m.seconds_to.get(t), 1) for m in found] for t, title in targets.items()},
        "Training (s, shared machine)": (mean_sd(m.figures.get("train.seconds"), 1) for m in found),
        "Gradient spikes per seed": (mean_sd(m.figures.get("convergence.spikes"), 1) for m in found),
    }
    hints = {f"Mean validation loss ({unit})": "area under the validation loss, per token"}
    return Table.of("convergence", "How fast each method learns", columns, **hints)


def capacity(summary: Summary) -> Table:
    """Properties of each adapter's update. Those of modules are left out where a method adapts none."""
    found = [m for m in summary.ordered if any(name.startswith("capacity.") for name in m.figures)]
    columns = {"Method": list(map(_marked(summary), found))}
    for key, title in _CAPACITY_OF_LAYERS.items():
        columns[title] = [mean_sd(m.figures.get(f"capacity.{key}"), 3) for m in found]
    for key, title in _CAPACITY_OF_MODULES.items():
        columns[title] = [mean_sd(_of_modules(m, key), 3) for m in found]
    return Table.of("capacity", "Properties of each update, mean ± s.d. over seeds", columns, **_CAPACITY_HINTS)


def costs(summary: Summary) -> Table:
    """Parameters, bytes, time."""
    found = [m for m in summary.ordered if m.cost or m.bytes_stored]
    ratio = f"Step \u00d7 {summary.study.reference}"
    columns = {
        "Method": map(_marked(summary), found),
        "Trainable parameters": (count(m.trainable) for m in found),
        "Deployed parameters": (count(m.deployed) for m in found),
        "Generator parameters": (count(m.generator) for m in found),
        "Stored (kB)": (_scaled(m.bytes_stored, 1e3, 1) for m in found),
        "Optimizer (kB)": (_scaled(_mean(m, "cost.optimizer_bytes"), 1e3, 1) for m in found),
        "Step (ms), median (p10 to p90)": map(_step, found),
        ratio: (decimal(m.cost.get("step_ratio"), 2) for m in found),
        "Peak memory (MB)": (_scaled(m.cost.get("peak_mem_bytes"), 1e6, 1) for m in found),
        **{
            f"Generation (tokens/s), batch {batch}, {how}": [count(_tokens_per_second(m, batch, how)) for m in found]
            for batch in (1, 8)
            for how in ("merged", "unmerged")
        },
        "Overhead, unmerged (%)": (_percent(m.cost.get("infer_overhead_pct")) for m in found),
        "MFLOP per token": (_scaled(m.cost.get("flops_per_token"), 1e6, 2) for m in found),
    }
    hints = {
        "Generator parameters": "enough to regenerate the deployed ones",
        ratio: "against the reference, measured in alternation on the same machine",
        "Overhead, unmerged (%)": "of generation, compared with the base in the same run",
    }
    return Table.of("costs", "Costs of each method", columns, **hints)


def missing(summary: Summary) -> Table:
    """Measurements that are null, with the reasons that their rows give."""
    methods: dict[tuple[str, str], list[str]] = {}
    for method in summary.ordered:
        for figure, reason in method.null_reasons.items():
            methods.setdefault((reason, figure), []).append(method.key)
    figures: dict[tuple[str, str], list[str]] = {}
    for (reason, figure), keys in sorted(methods.items()):
        named = "all" if len(keys) == len(summary.ordered) else ", ".join(keys)
        figures.setdefault((reason, named), []).append(figure)
    columns = {
        "Reason": [reason for reason, _ in figures],
        "Methods": [named for _, named in figures],
        "Measurements": [", ".join(found) for found in figures.values()],
    }
    return Table.of("missing", "Measurements that are missing, and why", columns)


def environment(summary: Summary, rows: Iterable[Row]) -> Table:
    """Base, data, versions and machines, each with every value that the rows name."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
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
    columns = {"What": lines.keys(), "Value": lines.values()}
    return Table.of("environment", "Base, data, versions and machines of the rows", columns)


def _all(summary: Summary) -> list[MethodSummary]:
    found = summary.ordered
    return found + [method for method in summary.methods if method not in found]


def _marked(summary: Summary) -> Name:
    """The key after the sign of its kind, controls indented."""
    return lambda method: f"{'↳ ' if method.against else ''}{kind_of(method, summary).sign} {method.key}"


def _kind(method: MethodSummary, summary: Summary) -> str:
    kind = kind_of(method, summary).title + (f" of {method.against}" if method.against else "")
    return kind + (", equal budget" if method.role == "equal_budget" else "")


def _metric(found: list[MethodSummary], summary: Summary, of: str = "") -> dict[str, list[str]]:
    title = f"{metric_name(summary)}{of} ({metric_unit(summary)})"
    return {title: [mean_sd(m.metric, factor=metric_factor(summary)) for m in found]}


def _differences(title: str, found: list[Difference | None], summary: Summary) -> dict[str, list[str]]:
    texts = [interval(difference, metric_factor(summary)) for difference in found]
    return {f"{title} [95 % interval]": texts, "Verdict": list(map(verdict, found))}


def _note(member: BlockMember) -> str:
    if member.over_budget:
        return "over the budget, not ranked"
    return f"below {100 * LEAST_RANKED:.0f} % of the budget, not ranked" if member.ratio < LEAST_RANKED else ""


def _rate_of_trial(row: Row) -> float | None:
    """The learning rate of a trial, from its name where the row has none."""
    if row.role != "tuning":
        return None
    return row.train.lr


def _trial(method: MethodSummary, index: int, summary: Summary, lost: Mapping[tuple[str, str], str]) -> str:
    trials = summary.tuning[method.key]
    if index >= len(trials):
        return ""
    lr, loss = trials[index]
    outcome = decimal(loss) if loss is not None else lost.get((method.key, rate(lr)), "missing")
    return f"{rate(lr)}: {outcome}{' ✓' if lr == method.lr else ''}"


def _perplexity(method: MethodSummary) -> str:
    """`inf-like` where the loss is too large for its exponential to mean anything."""
    from qpeft.training.metrics import HOPELESS_LOSS

    perplexity, loss = method.figures.get("quality.test_ppl"), _mean(method, "quality.test_loss")
    if perplexity is None and loss is not None and loss > HOPELESS_LOSS:
        return "inf-like"
    return mean_sd(perplexity, 2)


def _of_modules(method: MethodSummary, key: str) -> Stats | None:
    if _mean(method, "capacity.n_modules") == 0:
        return None
    return method.figures.get(f"capacity.{key}")


def _mean(method: MethodSummary, figure: str) -> float | None:
    stats = method.figures.get(figure)
    return None if stats is None else stats.mean


def _step(method: MethodSummary) -> str:
    times: dict[str, Any] = method.cost.get("step_ms") or {}
    middle, low, high = (times.get(part) for part in ("median", "p10", "p90"))
    spread = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
    return decimal(middle, 1) + (spread if middle is not None else "")


def _step_with_ratio(method: MethodSummary) -> str:
    step, ratio = (method.cost.get("step_ms") or {}).get("median"), method.cost.get("step_ratio")
    return decimal(step, 1) + ("" if step is None or ratio is None else f" ({ratio:.2f})")


def _tokens_per_second(method: MethodSummary, batch: int, how: str) -> float | None:
    return ((method.cost.get("infer_tok_s") or {}).get(f"batch_{batch}") or {}).get(how)


def _generation_speed(method: MethodSummary) -> float | None:
    """Tokens per second for one text, merged where merging is possible."""
    return _tokens_per_second(method, 1, "merged") or _tokens_per_second(method, 1, "unmerged")


def _scaled(value: float | None, unit: float, decimals: int) -> str:
    return decimal(None if value is None else value / unit, decimals)


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _percent(value: float | None) -> str:
    return decimal(None) if value is None else f"{value:+.0f}"
