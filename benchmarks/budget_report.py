"""What `small_budgets.py` found: choices made on validation, then, once, the test split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from budget_rows import Row
from budget_runs import Cell, Study

Outcomes = Mapping[Cell, dict[str, Any]]

HEADINGS = ("method", "trainable", "validation loss", "test loss", "test perplexity", "share of full gain", "rate")


def tuning_cells(name: str, row: Row) -> list[Cell]:
    """Seed 0 at every rate; one run without training where there are no rates."""
    return [Cell(name, lr, 0) for lr in row.rates or (0.0,)]


def best_rate(name: str, row: Row, outcomes: Outcomes) -> float | None:
    """The rate with the lowest validation loss; None while a tuning run is missing."""
    cells = tuning_cells(name, row)
    if any(cell not in outcomes for cell in cells):
        return None
    return min(cells, key=lambda cell: outcomes[cell]["loss"]).lr


def final_cells(name: str, row: Row, lr: float, seeds: list[int]) -> list[Cell]:
    """Every seed at the chosen rate."""
    return [Cell(name, lr, seed) for seed in seeds] if row.rates else tuning_cells(name, row)


@dataclass(frozen=True)
class Line:
    """One method: losses of its seeds in nats a token, and whether its best rate lies at an edge of the three."""

    method: str
    trainable: int
    rate: float
    edge: str
    validation: list[float]
    test: list[float]
    share: float | None = None


def lines(rows: Mapping[str, Row], study: Study, seeds: list[int], test: bool) -> list[Line]:
    """All rows that are tuned, by count. Raises SystemExit if the test split is asked for and a run is missing."""
    outcomes = study.outcomes()
    chosen = {name: best_rate(name, row, outcomes) for name, row in rows.items()}
    cells = {n: final_cells(n, rows[n], lr, seeds) for n, lr in chosen.items() if lr is not None}
    missing = [n for n in rows if n not in cells or any(cell not in outcomes for cell in cells[n])]
    if test and missing:
        raise SystemExit(f"the test split is read once, when every run is done; unfinished: {', '.join(missing)}")
    test_losses = study.test_losses() if test else {}
    made = [
        _line(rows[n], [cell for cell in mine if cell in outcomes], outcomes, test_losses) for n, mine in cells.items()
    ]
    return sorted(_with_shares(made), key=lambda line: line.trainable)


def table(found: list[Line], title: str) -> Table:
    """The lines for people."""
    shown = Table(title=title)
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for line in found:
        shown.add_row(*_texts(line))
    return shown


def markdown(found: list[Line]) -> str:
    """The lines for the documentation."""
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(_texts, found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(found: list[Line]) -> list[dict[str, Any]]:
    """The lines for machines."""
    return [asdict(line) for line in found]


def _line(row: Row, cells: list[Cell], outcomes: Outcomes, test_losses: Mapping[Cell, float]) -> Line:
    method, rate, _ = cells[0]
    edge = "low" if row.rates and rate == min(row.rates) else "high" if row.rates and rate == max(row.rates) else ""
    validation = [outcomes[cell]["loss"] for cell in cells]
    test = [test_losses[cell] for cell in cells if cell in test_losses]
    return Line(method, outcomes[cells[0]]["trainable"], rate, edge, validation, test)


def _with_shares(found: list[Line]) -> list[Line]:
    """(base - loss) / (base - full fine-tuning) on the test split, where both references were run."""
    means = {line.method: mean(line.test) for line in found if line.test}
    if not {"base", "full"} <= means.keys():
        return found
    gain = means["base"] - means["full"]
    return [Line(**{**asdict(line), "share": (means["base"] - means[line.method]) / gain}) for line in found]


def _texts(line: Line) -> tuple[str, ...]:
    return (
        line.method,
        f"{line.trainable:,}",
        _spread(line.validation),
        _spread(line.test),
        f"{math.exp(mean(line.test)):.2f}" if line.test else "",
        f"{line.share:.1%}" if line.share is not None else "",
        f"{line.rate:g}{f' ({line.edge} edge)' if line.edge else ''}" if line.rate else "",
    )


def _spread(losses: list[float]) -> str:
    if not losses:
        return ""
    return f"{mean(losses):.4f}" + (f" ± {stdev(losses):.4f}" if len(losses) > 1 else "")
