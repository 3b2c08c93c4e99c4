"""The tables of what was measured beside quality: speed, capacity, costs, what is missing, and where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qpeft.compare.report import cells, numbers, words
from qpeft.compare.report.results import ordered
from qpeft.compare.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import MethodSummary, Summary
    from qpeft.compare.analysis.statistics import Stats
    from qpeft.compare.rows import Row

_OF_BLOCKS = (
    ("block_effective_rank", "Effective rank of Δy", "of whole layers: comparable between all methods"),
    ("block_linear_share", "Linear share", "how much of Δy the best linear map of the same token explains, held out"),
    ("block_mean_share", "Mean share", "‖E Δy‖² / E‖Δy‖²; near 1 it is a bias in disguise"),
    ("cka", "CKA to the base", "linear, of hidden states, mean over layers; 1 means the same up to rotation and scale"),
)
_OF_MODULES = (
    ("effective_rank", "Effective rank of Δy, modules", "of the modules that the method adapts"),
    ("linear_share", "Linear share, modules", ""),
    ("mean_share", "Mean share, modules", ""),
    ("jacobian_rank", "Jacobian's effective rank", "of the update's mean Jacobian"),
    ("weight_effective_rank", "Effective rank of ΔW", "exp of the entropy of its singular values"),
    ("weight_numerical_rank", "Numerical rank of ΔW", "singular values above 1e-6 of the first"),
    ("weight_stable_rank", "Stable rank of ΔW", "squared Frobenius norm over squared spectral norm"),
    ("weight_norm_ratio", "‖ΔW‖ / ‖W‖", ""),
)
_TARGETS = {"half_of_full": "half of full's gain", "ninety_of_full": "90 % of full's gain"}


def speed(summary: Summary) -> Table:
    """How fast each method learns."""
    found, unit = ordered(summary), words.loss_unit(summary.study)
    hint = "area under the validation loss, per token"

    def means(figure: str) -> list[Cell]:
        return cells.means([m.figures.get(figure) for m in found])

    targets = [name for name, loss in summary.targets.items() if loss is not None]
    titles = {name: _TARGETS.get(name, f"{summary.study.reference}'s loss") for name in targets}
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Mean height of the curve", means("convergence.auc_per_token"), unit, hint),
        Column("Validation loss", means("quality.valid_loss_last"), f"{unit}, last"),
        Column("Best step", means("quality.best_step")),
        *(Column(f"Steps to {titles[t]}", cells.arrivals(m.steps_to.get(t) for m in found)) for t in targets),
        *(Column(f"Seconds to {titles[t]}", cells.arrivals(m.seconds_to.get(t) for m in found)) for t in targets),
        Column("Training", means("train.seconds"), "seconds, shared"),
        Column("Gradient spikes", means("convergence.spikes"), "a seed"),
    ]
    return Table("convergence", "How fast each method learns", columns)


def capacity(summary: Summary) -> Table:
    """What each adapter's update is made of. Figures of modules are left out where a method adapts none."""
    found = [m for m in ordered(summary) if any(name.startswith("capacity.") for name in m.figures)]
    columns = [Column("Method", cells.names(found, summary), is_number=False)]
    for key, title, hint in _OF_BLOCKS:
        columns.append(Column(title, cells.means([m.figures.get(f"capacity.{key}") for m in found]), hint=hint))
    for key, title, hint in _OF_MODULES:
        columns.append(Column(title, cells.means([_of_modules(m, key) for m in found]), hint=hint))
    return Table("capacity", "What each update is made of, ± s.d. over seeds", columns)


def costs(summary: Summary) -> Table:
    """Numbers, bytes, time."""
    found = [m for m in ordered(summary) if m.cost or m.bytes_stored]

    def of(name: str) -> list[float | None]:
        return [m.cost.get(name) for m in found]

    against = "against the reference, measured in turns on the same machine"
    overhead = "of writing, against the base in the same run"
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Trainable", cells.counts(m.trainable for m in found), "numbers"),
        Column("Deployed", cells.counts(m.deployed for m in found), "numbers"),
        Column("Generator", cells.counts(m.generator for m in found), "numbers", "they regenerate the deployed ones"),
        Column("Stored", cells.written((m.bytes_stored for m in found), numbers.size)),
        Column("Optimiser", cells.written(map(_optimizer_bytes, found), numbers.size)),
        Column("Step", [_step(m) for m in found], "ms, median (p10 to p90)"),
        Column(f"Step \u00d7 {summary.study.reference}", cells.written(of("step_ratio"), _ratio), hint=against),
        Column("Peak memory", cells.written(of("peak_mem_bytes"), numbers.size)),
        *(_writing(found, batch, how) for batch in (1, 8) for how in ("merged", "unmerged")),
        Column("Overhead", cells.written(of("infer_overhead_pct"), _percent), "%, unmerged", overhead),
        Column("Work", cells.written(of("flops_per_token"), numbers.short), "FLOP/token"),
    ]
    return Table("costs", "What each method costs", columns)


def missing(summary: Summary) -> Table:
    """Figures that are null, and the reasons that their rows give."""
    keys: dict[tuple[str, str], list[str]] = {}
    for method in ordered(summary):
        for figure, reason in method.null_reasons.items():
            keys.setdefault((reason, figure), []).append(method.key)
    figures: dict[tuple[str, str], list[str]] = {}
    for (reason, figure), whose in sorted(keys.items()):
        named = "all" if len(whose) == len(ordered(summary)) else ", ".join(whose)
        figures.setdefault((reason, named), []).append(figure)
    columns = [
        Column("Why", cells.texts(reason for reason, _ in figures), is_number=False),
        Column("Methods", cells.texts(whose for _, whose in figures), is_number=False),
        Column("Figures", cells.texts(", ".join(found) for found in figures.values()), is_number=False),
    ]
    return Table("missing", "Figures that could not be had, and why", columns)


def environment(summary: Summary, rows: Iterable[Row]) -> Table:
    """Base, data, versions and machines, each with every value that the rows name."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for key, value in row.env.to_json().items():
            if value is not None:
                found.setdefault(key, {})[str(value)] = None
    base, data = summary.study.base, summary.study.data
    lines = {
        "base": f"{base.id}, {base.params_total:,} numbers, {base.dtype}",
        "base, SHA-256": base.sha256,
        "data": data.id,
        "data, SHA-256": data.sha256,
        **{key: "; ".join(values) for key, values in sorted(found.items())},
    }
    columns = [
        Column("What", cells.texts(lines), is_number=False),
        Column("Which", cells.texts(lines.values()), is_number=False),
    ]
    return Table("environment", "Base, data, versions and machines of the rows", columns)


def _of_modules(method: MethodSummary, key: str) -> Stats | None:
    n_modules = method.figures.get("capacity.n_modules")
    if n_modules is not None and n_modules.mean == 0:
        return None
    return method.figures.get(f"capacity.{key}")


def _optimizer_bytes(method: MethodSummary) -> float | None:
    found = method.figures.get("cost.optimizer_bytes")
    return None if found is None else found.mean


def _step(method: MethodSummary) -> Cell:
    times: dict[str, Any] = method.cost.get("step_ms") or {}
    middle, low, high = (times.get(part) for part in ("median", "p10", "p90"))
    if middle is None:
        return Cell(numbers.MISSING)
    decimals = numbers.places(middle / 10)
    text = numbers.number(middle, decimals)
    if low is not None and high is not None:
        text += f" ({numbers.number(low, decimals)} to {numbers.number(high, decimals)})"
    return Cell(text, middle)


def _writing(found: list[MethodSummary], batch: int, how: str) -> Column:
    rates = [(m.cost.get("infer_tok_s") or {}).get(f"batch_{batch}") or {} for m in found]
    return Column(f"Writing, {how}", cells.counts(rate.get(how) for rate in rates), f"tokens/s, batch {batch}")


def _ratio(value: float) -> str:
    return numbers.number(value, 2)


def _percent(value: float) -> str:
    return numbers.signed(value, 0)
