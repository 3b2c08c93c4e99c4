"""The tables of what was measured beside quality: speed, capacity, costs, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qpeft.studies.comparison.report import numbers, words
from qpeft.studies.comparison.report.cells import amount, name, reached, stats
from qpeft.studies.comparison.report.results import NAME, ordered
from qpeft.studies.comparison.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from qpeft.studies.comparison.findings import MethodSummary, Summary
    from qpeft.studies.comparison.rows import Row

_OF_BLOCKS = (
    ("block_effective_rank", "Effective rank of Δy", "of whole layers: comparable between all methods"),
    ("block_linear_share", "Linear share", "how much of Δy the best linear map of the same token explains"),
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
    unit = words.loss_unit(summary.study)
    columns = [NAME, Column("Mean height of the curve", unit, hint="area under the validation loss, per token")]
    columns += [Column("Validation loss", f"{unit}, last"), Column("Best step")]
    targets = {name: loss for name, loss in summary.targets.items() if loss is not None}
    columns += [Column(f"Steps to {_target(name, summary)}") for name in targets]
    columns += [Column(f"Seconds to {_target(name, summary)}") for name in targets]
    columns += [Column("Training", "seconds"), Column("Gradient spikes", "a seed")]
    rows = []
    for method in ordered(summary):
        of = method.figures.get
        first = [of("convergence.auc_per_token"), of("quality.valid_loss_last"), of("quality.best_step")]
        hits = [found.get(target) for found in (method.steps_to, method.seconds_to) for target in targets]
        last = [of("train.seconds"), of("convergence.spikes")]
        rows.append([name(method, summary), *map(stats, first), *map(reached, hits), *map(stats, last)])
    return Table("convergence", "How fast each method learns", columns, rows).without_empty()


def capacity(summary: Summary) -> Table:
    """What each adapter's update is made of. Figures of modules are left out where a method adapts none."""
    columns = [NAME, *(Column(title, hint=hint) for _, title, hint in (*_OF_BLOCKS, *_OF_MODULES))]
    rows = []
    for method in ordered(summary):
        of = {
            key.removeprefix("capacity."): found for key, found in method.figures.items() if key.startswith("capacity.")
        }
        if not of:
            continue
        adapts_modules = "n_modules" not in of or of["n_modules"].mean > 0
        blocks = [stats(of.get(key)) for key, _, _ in _OF_BLOCKS]
        modules = [stats(of.get(key) if adapts_modules else None) for key, _, _ in _OF_MODULES]
        rows.append([name(method, summary), *blocks, *modules])
    return Table("capacity", "What each update is made of, ± s.d. over seeds", columns, rows).without_empty()


def costs(summary: Summary) -> Table:
    """Numbers, bytes, time."""
    reference = summary.study["reference"]
    columns = [
        NAME,
        Column("Trainable", "numbers"),
        Column("Deployed", "numbers"),
        Column("Generator", "numbers", hint="that regenerate the deployed ones"),
        Column("Stored"),
        Column("Optimiser"),
        Column("Step", "ms, median (p10 to p90)"),
        Column(f"Step \u00d7 {reference}", hint="against the reference, measured in turns on the same machine"),
        Column("Peak memory"),
        *(Column(f"Writing, {how}", f"tokens/s, batch {batch}") for batch in (1, 8) for how in ("merged", "unmerged")),
        Column("Overhead", "%, unmerged", hint="of writing, against the base in the same run"),
        Column("Work", "FLOP/token"),
    ]
    rows = [_costs(method, summary) for method in ordered(summary) if method.cost or method.bytes_stored]
    return Table("costs", "What each method costs", columns, rows).without_empty()


def missing(summary: Summary) -> Table:
    """Figures that are null, and the reasons that their rows give."""
    found: dict[tuple[str, str], list[str]] = {}
    for method in ordered(summary):
        for figure, reason in method.null_reasons.items():
            found.setdefault((figure, reason), []).append(method.key)
    columns = [Column(title, is_number=False) for title in ("Figure", "Why", "Methods")]
    rows = []
    for (figure, why), keys in sorted(found.items()):
        whose = "all" if len(keys) == len(ordered(summary)) else ", ".join(keys)
        rows.append([Cell(figure, figure), Cell(why, why), Cell(whose, whose)])
    return Table("missing", "Figures that could not be had, and why", columns, rows)


def environment(summary: Summary, rows: Iterable[Row]) -> Table:
    """Base, data, versions and machines, each with every value that the rows name."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for key, value in row["env"].items():
            if value is not None:
                found.setdefault(key, {})[str(value)] = None
    base, data = summary.study["base"], summary.study["data"]
    lines = {
        "base": f"{base['id']}, {base['params_total']:,} numbers, {base['dtype']}",
        "base, SHA-256": base["sha256"],
        "data": data["id"],
        "data, SHA-256": data["sha256"],
        **{key: "; ".join(values) for key, values in sorted(found.items())},
    }
    columns = [Column("What", is_number=False), Column("Which", is_number=False)]
    cells = [[Cell(key, key), Cell(text, text)] for key, text in lines.items()]
    return Table("environment", "Base, data, versions and machines of the rows", columns, cells)


def step_ms(method: MethodSummary) -> float | None:
    """The median time of a training step, measured alone."""
    return (method.cost.get("step_ms") or {}).get("median")


def _target(target: str, summary: Summary) -> str:
    return _TARGETS.get(target, f"{summary.study['reference']}'s loss")


def _costs(method: MethodSummary, summary: Summary) -> list[Cell]:
    optimizer = method.figures.get("cost.optimizer_bytes")
    return [
        name(method, summary),
        *map(amount, (method.trainable, method.deployed, method.generator)),
        _cell(method.bytes_stored, numbers.size),
        _cell(optimizer.mean if optimizer else method.cost.get("optimizer_bytes"), numbers.size),
        _step(method.cost.get("step_ms") or {}),
        _cell(method.cost.get("step_ratio"), lambda value: numbers.number(value, 2)),
        _cell(method.cost.get("peak_mem_bytes"), numbers.size),
        *(_cell(_tokens(method.cost, batch, how), numbers.count) for batch in (1, 8) for how in ("merged", "unmerged")),
        _cell(method.cost.get("infer_overhead_pct"), lambda value: numbers.signed(value, 0)),
        _cell(method.cost.get("flops_per_token"), numbers.short),
    ]


def _cell(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell(numbers.MISSING) if value is None else Cell(write(value), value)


def _step(times: Mapping[str, float | None]) -> Cell:
    middle, low, high = (times.get(part) for part in ("median", "p10", "p90"))
    if middle is None:
        return Cell(numbers.MISSING)
    decimals = numbers.places(middle / 10)
    text = numbers.number(middle, decimals)
    if low is not None and high is not None:
        text += f" ({numbers.number(low, decimals)} to {numbers.number(high, decimals)})"
    return Cell(text, middle)


def _tokens(cost: Mapping[str, Any], batch: int, how: str) -> float | None:
    rates = (cost.get("infer_tok_s") or {}).get(f"batch_{batch}") or {}
    return rates.get(how)
