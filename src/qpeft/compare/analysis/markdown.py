"""The summary as Markdown: answers first, then the table, blocks, failures, limits, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qpeft.compare.analysis.found import Block, MethodSummary, Reached, Summary
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.training.metrics import HOPELESS_LOSS

_HEADINGS = ("method", "trainable", "deployed", "bytes", "metric, mean ± s.d.", "perplexity", "Δ [95 % interval]")
_HEADINGS += ("verdict", "steps to the reference's loss", "step ms (times the reference's)", "peak MB", "tokens/s")
_HEADINGS += ("effective rank", "linear share", "seeds", "flags")


def markdown(summary: Summary) -> str:
    """The whole page, ending in a newline."""
    study = summary.study
    parts = [f"# {study.title}", study.question, *_answers(summary)]
    parts += ["## All methods", _caption(summary), _table(_HEADINGS, [_cells(m) for m in summary.methods])]
    parts += [text for block in summary.blocks for text in _block(block, summary)]
    parts += _failures(summary)
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in summary.limits)]
    parts += ["## Again", f"    {study.command}"]
    return "\n\n".join(parts) + "\n"


def _answers(summary: Summary) -> list[str]:
    lines = [*(f"**{text}**" for text in summary.headlines), *summary.sentences.values()]
    return ["## Answers", "\n".join(f"- {text}" for text in lines)]


def _caption(summary: Summary) -> str:
    direction = "lower" if summary.lower_is_better else "higher"
    reference = summary[summary.study.reference].label
    return (
        f"Metric: {summary.study.metric}, {direction} is better. Δ: method minus {reference}, paired by seed. "
        "A dash is a figure that was not measured; reasons are in summary.csv."
    )


def _cells(method: MethodSummary) -> list[str]:
    figures = method.figures
    ppl = figures.get("quality.test_ppl")
    inf_like = ppl is None and method.metric is not None and _loss(figures) > HOPELESS_LOSS
    return [
        method.label,
        f"{method.trainable:,}",
        f"{method.deployed:,}",
        _number(method.bytes_stored, ",.0f"),
        _mean_sd(method.metric, 4),
        "inf-like" if inf_like else _mean_sd(ppl, 2),
        _interval(method.difference),
        "" if method.difference is None else method.difference.verdict,
        _reached(method.steps_to.get("reference")),
        _step(method),
        _number(_mega(method.cost.get("peak_mem_bytes")), ",.0f"),
        _speed(method),
        _mean_sd(figures.get("capacity.effective_rank"), 2),
        _mean_sd(figures.get("capacity.linear_share"), 2),
        f"{method.ok}/{len(method.statuses)}",
        "; ".join(method.flags),
    ]


def _block(block: Block, summary: Summary) -> list[str]:
    of = summary[block.of].label
    headings = ("rank", "method", "trainable", "of the budget", "metric, mean ± s.d.", f"Δ to {of} [95 %]", "verdict")
    lines = []
    for member in block.members:
        method = summary[member.key]
        share = f"{100 * member.ratio:.3g} %{', over' if member.over_budget else ''}"
        verdict = "" if member.difference is None else member.difference.verdict
        rank = "not ranked" if member.rank is None else str(member.rank)
        cells = [rank, method.label, f"{member.trainable:,}", share, _mean_sd(method.metric, 4)]
        lines.append([*cells, _interval(member.difference), verdict])
    return [f"## At {of}'s {block.budget:,} trained numbers", _table(headings, lines)]


def _failures(summary: Summary) -> list[str]:
    if not summary.failures:
        return []
    lines = [f"- `{row.cell_id}`: {row.status}, {row.error_msg or 'no message'}" for row in summary.failures]
    return ["## Failures", "\n".join(" ".join(line.split()) for line in lines)]


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _mean_sd(stats: Stats | None, decimals: int) -> str:
    if stats is None:
        return "-"
    spread = "" if stats.sd is None else f" ± {stats.sd:.{decimals}f}"
    return f"{stats.mean:.{decimals}f}{spread}"


def _interval(found: Difference | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _reached(found: Reached | None) -> str:
    if found is None:
        return "-"
    return f"> {found.limit:g}" if found.mean is None else f"{found.mean:,.0f}"


def _step(method: MethodSummary) -> str:
    step, ratio = (method.cost.get("step_ms") or {}).get("median"), method.cost.get("step_ratio")
    return _number(step, ",.1f") + ("" if step is None or ratio is None else f" ({ratio:.2f})")


def _speed(method: MethodSummary) -> str:
    """Tokens a second of one text, merged where merging is possible."""
    speeds = (method.cost.get("infer_tok_s") or {}).get("batch_1") or {}
    return _number(speeds.get("merged") or speeds.get("unmerged"), ",.0f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _loss(figures: dict[str, Stats]) -> float:
    stats = figures.get("quality.test_loss")
    return 0.0 if stats is None else stats.mean
