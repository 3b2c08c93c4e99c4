"""Rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable

from speed.measure import Row

HEADINGS = ("what", "qpeft", "other", "", "other / qpeft", "quartiles", "rounds", "of the roofline")
_TEXT = (0, 2)  # columns without numbers


def markdown(rows: Iterable[Row]) -> str:
    ruler = [" --- " if i in _TEXT else " ---: " for i in range(len(HEADINGS))]
    lines = [" | ".join(HEADINGS), "|".join(ruler).strip(), *(" | ".join(cells(row)) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    if row.ratio is None:
        return row.what, "", row.other, row.note, "", "", "", ""
    return (
        row.what,
        _amount(row.ours, row.unit),
        f"{row.other} ({row.note})" if row.note else row.other,
        _amount(row.theirs, row.unit),
        _ratio(row.ratio),
        " to ".join(_ratio(value) for value in row.quartiles) if row.quartiles else "",
        str(row.rounds),
        f"{row.of_roofline:.1%}" if row.of_roofline is not None else "",
    )


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"
