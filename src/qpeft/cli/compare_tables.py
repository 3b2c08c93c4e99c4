"""How a comparison's plan and results look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpeft.cli.console import count, say, table

if TYPE_CHECKING:
    from rich.table import Table

    from qpeft.compare.analysis.types import Summary
    from qpeft.compare.resolved import ResolvedMember, ResolvedMethod, ResolvedStudy
    from qpeft.compare.rows import Row


def results(summary: Summary) -> list[Table]:
    """The methods with their controls, best first, and each equal-budget block: the report's tables, fewer columns."""
    from qpeft.compare.report import tables

    found = [tables.results(summary, tables.plain_name)]
    if any(method.against for method in summary.methods):
        found.append(tables.controls(summary, tables.plain_name))
    found += [tables.block(block, summary, tables.plain_name) for block in summary.blocks]
    return [table(brief.columns, brief.rows, title=brief.caption) for brief in map(tables.brief, found)]


def planned(study: ResolvedStudy) -> Table:
    """The methods of a plan with their parameters and learning rates."""
    columns = ("Method", "Trainable", "Deployed", "Learning rates", "Role")
    members = {member.key: member for block in study.blocks for member in block.members}
    rows = [
        (
            method.key,
            count(method.trainable),
            count(method.deployed),
            " ".join(f"{rate:g}" for rate in method.rates) or "-",
            _role(method, members.get(method.key)),
        )
        for method in study.methods
    ]
    return table(columns, rows)


def say_failures(failures: Iterable[Row]) -> None:
    """A line for each cell that failed."""
    for row in failures:
        say(f"{row.status}:", " ".join(f"{row.cell_id}: {row.error_msg or ''}".split()), "bold red")


def say_warnings(summary: Summary) -> None:
    """The methods whose best learning rate is at an edge of their grid."""
    for method in summary.methods:
        for flag in (flag for flag in method.flags if flag.startswith("edge")):
            say("Note:", f"{method.key}: {flag}; a wider grid may contain a better one", "bold yellow")


def _role(method: ResolvedMethod, member: ResolvedMember | None) -> str:
    if method.role == "control":
        return f"control of {method.against}"
    if method.role != "equal_budget" or member is None:
        return ""
    return f"{member.ratio:.0%} of a budget{'' if member.ranked else ', not ranked'}"
