"""How a comparison's plan and findings look in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpeft.cli.console import count, say, table

if TYPE_CHECKING:
    from rich.table import Table

    from qpeft.compare.analysis.found import MethodSummary, Summary
    from qpeft.compare.analysis.statistics import Difference, Stats
    from qpeft.compare.resolved import ResolvedMember, ResolvedMethod, ResolvedStudy
    from qpeft.compare.rows import Row

_METRICS = {"test_loss": "test loss", "test_accuracy": "test accuracy", "bleu": "BLEU"}


def results(summary: Summary) -> list[Table]:
    """A table of the methods, best first; one of the controls, one of each equal-budget block, where there are such."""
    main = sorted((m for m in summary.methods if m.role == "main"), key=lambda method: _order(method, summary))
    reference = summary.study.reference
    tables = [_results("Methods", f"to {reference}", [(m, m.difference) for m in main], summary)]
    controls = [(m, m.difference_to_target) for m in summary.methods if m.role == "control"]
    if controls:
        tables.append(_results("Controls", "to what they control", controls, summary))
    for block in summary.blocks:
        members = [(summary[member.key], member.difference) for member in block.members]
        title = f"At the {count(block.budget)} trained numbers of {block.of}"
        tables.append(_results(title, f"to {block.of}", members, summary))
    return tables


def planned(study: ResolvedStudy) -> Table:
    """The methods of a plan with their counts and rates."""
    columns = ("method", "trained", "deployed", "learning rates", "role")
    ratios = {member.key: member for block in study.blocks for member in block.members}
    rows = [
        (
            method.key,
            count(method.trainable),
            count(method.deployed),
            " ".join(f"{rate:g}" for rate in method.rates) or "-",
            _role(method, ratios.get(method.key)),
        )
        for method in study.methods
    ]
    return table(columns, rows)


def say_failures(failures: Iterable[Row]) -> None:
    """A line for each cell that failed."""
    for row in failures:
        say(f"{row.status}:", " ".join(f"{row.cell_id}: {row.error_msg or ''}".split()), "bold red")


def say_warnings(summary: Summary) -> None:
    """Which methods have their best rate at the edge of their grid."""
    for method in summary.methods:
        for flag in (flag for flag in method.flags if flag.startswith("edge")):
            say("Note:", f"{method.key}: {flag}; a wider grid may find a better one", "bold yellow")


def _results(
    title: str, to: str, methods: Iterable[tuple[MethodSummary, Difference | None]], summary: Summary
) -> Table:
    columns = ("method", "trained", _METRICS[summary.study.metric], f"difference {to}", "verdict", "seeds")
    rows = [
        (
            method.key,
            count(method.trainable),
            _mean_sd(method.metric),
            _interval(difference),
            difference.verdict if difference else "",
            f"{method.ok}/{len(method.statuses)}",
        )
        for method, difference in methods
    ]
    return table(columns, rows, title=title)


def _order(method: MethodSummary, summary: Summary) -> float:
    if method.metric is None:
        return float("inf")
    return method.metric.mean if summary.lower_is_better else -method.metric.mean


def _mean_sd(stats: Stats | None) -> str:
    if stats is None:
        return "-"
    return f"{stats.mean:.4f}" + ("" if stats.sd is None else f" ± {stats.sd:.4f}")


def _interval(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _role(method: ResolvedMethod, member: ResolvedMember | None) -> str:
    if method.role == "control":
        return f"control of {method.against}"
    if method.role != "equal_budget" or member is None:
        return ""
    return f"{member.ratio:.0%} of a budget{'' if member.ranked else ', not ranked'}"
