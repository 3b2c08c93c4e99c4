"""From the rows of a study to its decision: docs/verdict.md describes verdict.json.

A difference is the test loss of the trained circuit minus that of what it is compared with, over
the same blocks of text, paired by seed, in per cent of what LoRA r=8 gains over the base without an
adapter. Below 0 the circuit is better. `compare/paired.py` has the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qpeft.errors import ConfigError, TrainingError, VerificationError
from qpeft.files import read_json
from qpeft_lab.compare.paired import EQUIVALENT, UNDECIDED, Paired, decisions
from qpeft_lab.compare.rows import Row, cell_id
from qpeft_lab.compare.stats import BETTER, MIN_SEEDS, WORSE
from qpeft_lab.compare.study import PlannedMethod, PlannedStudy, rates_of
from qpeft_lab.compare.summary import Result, Summary, load, named
from qpeft_lab.method_records import UNTRAINED
from qpeft_lab.user_files import without_folders
from qpeft_lab.verdict.protocol import (
    CIRCUIT,
    UNIT,
    Protocol,
    name_at,
    protocol_of,
    read_protocol,
)

VERDICT = "verdict.json"
SCHEMA = 1  # the version of verdict.json
_TOLERANCE = 1e-9  # between values that were written and those computed again
_ROUNDED = 6e-4  # test_losses have three decimals


@dataclass(frozen=True)
class Comparison:
    """The circuit and one of the others; all but counts and p values in per cent of the unit."""

    against: str
    label: str
    effect: float
    low: float
    high: float
    p: float
    p_holm: float
    p_margin: float
    p_margin_holm: float
    decision: str
    detectable: float
    n_seeds: int
    n_blocks: int


@dataclass(frozen=True)
class Size:
    """An adapter's parameters, and the learning rate that its trials chose."""

    label: str
    trained: int
    deployed: int
    lr: float | None
    loss: float


@dataclass(frozen=True)
class Verdict:
    """The content of verdict.json."""

    schema: int
    protocol: Protocol
    sentence: str
    shown: bool  # a benefit from the circuit: better than every twin
    gain: float  # of LoRA r=8 over the base without an adapter, nats per token
    comparisons: list[Comparison]
    angles_moved: float | None  # mean over angles and seeds, radians
    angles_moved_most: float | None  # of the angle that moved most, mean over seeds
    adapters: dict[str, Size]
    base: str
    base_sha256: str
    data: str
    data_sha256: str
    hashes: dict[str, str]  # by key, of all that the rows of an adapter depend on
    versions: dict[str, str]
    command: str


def decide(folder: Path) -> Verdict:
    """The decision of the study in `folder`.

    Raises ConfigError if the folder has no study of `qpeft verdict`, or a seed is missing,
    TrainingError if so many seeds diverged that there is no decision, and VerificationError if the
    protocol is not that of the study.
    """
    return _decide(read_protocol(folder), load(folder), folder)


def _decide(protocol: Protocol, summary: Summary, folder: Path) -> Verdict:
    margin = protocol.margin
    study = summary.study
    if protocol != protocol_of(study, margin) or study.name != name_at(margin):
        raise VerificationError(
            f"the protocol of the verdict in {folder} is not that of its study, such as its twins,"
            " seeds or margin: it was edited; restore it"
        )
    _refuse_edited(summary, folder)
    diverged: dict[str, list[int]] = {}
    for key in (UNIT, CIRCUIT, *protocol.others):
        result = summary[key]
        if set(result.statuses.values()) - {"success", "diverged"}:
            raise ConfigError(
                f"{folder} has no decision yet: of {result.label} {result.lost}. Run the command of"
                " the study again"
            )
        diverged[key] = [seed for seed in protocol.seeds if seed not in result.successes]
    _refuse_few_seeds(summary, diverged, folder)
    untrained, unit = (_loss(summary[key]) for key in (UNTRAINED, UNIT))
    gain = untrained - unit
    if gain <= 0:
        raise ConfigError(
            f"LoRA r=8 did not improve on the base ({unit:.3f} instead of {untrained:.3f} nats):"
            " there is no unit. Train longer (--minutes), or on other data"
        )
    compared = comparisons(
        {key: _table(summary[CIRCUIT], summary[key]) * 100 / gain for key in protocol.others},
        {key: summary[key].label for key in protocol.others},
        protocol.margin,
    )
    compared = [
        without_favor(each, bool(diverged[CIRCUIT]), bool(diverged[each.against]))
        for each in compared
    ]
    circuit = summary[CIRCUIT]
    study = summary.study
    twins = [each for each in compared if each.against in protocol.twins]
    row = next(iter(circuit.successes.values()))
    names = ("qpeft", "torch", "transformers", "peft", "python", "device")
    return Verdict(
        schema=SCHEMA,
        protocol=protocol,
        sentence=" ".join([sentence(twins, protocol.margin), *_told(summary, diverged)]),
        shown=all(each.decision == BETTER for each in twins),
        gain=gain,
        comparisons=compared,
        angles_moved=circuit.mean("angles_moved"),
        angles_moved_most=circuit.mean("angles_moved_most"),
        adapters={result.key: _size(result) for result in summary.results},
        base=Path(study.run.model).name,
        base_sha256=study.base_sha256,
        data=Path(study.run.data).name,
        data_sha256=study.data_sha256,
        hashes={method.key: method.hash for method in study.methods},
        versions={name: str(row[name]) for name in names},
        command=study.command,
    )


def _refuse_edited(summary: Summary, folder: Path) -> None:
    """Raise ConfigError if a trial of a learning rate is missing or failed, and VerificationError for
    a row that is not of the run which its identity names, or a study whose fields contradict each other.

    Seals notice every edit, but rows of qpeft 0.2 have none.
    """
    study = summary.study
    for result in summary.results:
        method = result.method
        _refuse_edited_rates(study, method, folder)
        for rate in result.search.rates if len(method.rates) > 1 else ():
            row = result.trials.get(rate)
            if row is None or row["status"] == "failed":
                lost = "is missing" if row is None else "failed, so another may be the best"
                raise ConfigError(
                    f"{folder} has no decision yet: of {result.label} the trial of the learning rate"
                    f" {rate:g} {lost}. Run the command of the study again"
                )
        for rate, row in result.trials.items():
            _refuse_edited_row(row, method, "tuning", study.tuning.seed, rate, folder)
        for row in result.seeds.values():
            if row is not None:
                seed = int(row["name"].removeprefix("seed"))
                _refuse_edited_row(row, method, method.role, seed, result.lr, folder)
    rows = [row for result in summary.results for row in result.successes.values()]
    for row in rows:
        losses = (row.get("test_loss"), *(row.get("test_losses") or [None]))
        if not all(isinstance(loss, float | int) for loss in losses):
            raise VerificationError(
                f"the row {cell_id(row)} in {folder} has no test_loss, or a test_losses that is no"
                " number: it was edited; restore it"
            )
    for what, counts in {
        "test_losses": {len(row["test_losses"]) for row in rows},
        "scored tokens": {row.get("test_scored") for row in rows},
    }.items():
        if len(counts) > 1:
            raise VerificationError(
                f"rows in {folder} have {' or '.join(sorted(map(str, counts)))} {what}; all have"
                " the same blocks of text, so some were edited: restore them"
            )
    for row in rows:
        _refuse_edited_losses(row, study, folder)


def _refuse_edited_rates(study: PlannedStudy, method: PlannedMethod, folder: Path) -> None:
    """Raise VerificationError if the learning rates of a method are not those of the grid."""
    grid = rates_of(method.lr or 1.0, study.tuning.grid)
    if method.rates and method.rates != grid:
        raise VerificationError(
            f"the learning rates of {method.label} in the study in {folder} are {method.rates}, and"
            f" its grid gives {grid}: it was edited; restore it"
        )


def _refuse_edited_row(
    row: Row | None, method: PlannedMethod, role: str, seed: int, lr: float | None, folder: Path
) -> None:
    """Raise VerificationError if a field of the row is not that of its run."""
    fixed = {
        "seed": seed,
        "role": role,
        "lr": lr,
        "adapter": method.method,
        "settings": without_folders(method.settings),
        "params_trainable": method.trainable,
    }
    stated = without_folders(fixed | (row or {}))
    edited = [name for name, value in fixed.items() if stated[name] != value]
    if edited:
        raise _edited(stated, folder, edited[0], fixed[edited[0]])


def _refuse_edited_losses(row: Row, study: PlannedStudy, folder: Path) -> None:
    """Raise VerificationError if the losses of blocks do not give the loss of the row."""
    losses = row["test_losses"]
    n_blocks = len(losses)
    if study.test_blocks and n_blocks > study.test_blocks:
        raise VerificationError(
            f"the row {cell_id(row)} in {folder} has {n_blocks} test_losses, and its study has"
            f" test_blocks {study.test_blocks}: one was edited; restore it"
        )
    mean = sum(losses) / n_blocks
    n_scored = row.get("test_scored")
    are_equal = n_scored in (None, n_blocks * ((study.run.seq_len or 0) - 1))
    # blocks with other numbers of tokens, as of prompts, have weights
    low, high = (mean, mean) if are_equal else (min(losses), max(losses))
    if not low - _ROUNDED <= row["test_loss"] <= high + _ROUNDED:
        raise _edited(row, folder, "test_loss", f"test_losses with the mean {mean:.4f}")


def _edited(row: Row, folder: Path, name: str, expected: Any) -> VerificationError:
    """The error for a field of a row."""
    return VerificationError(
        f"{name} of the row {cell_id(row)} in {folder} is {row[name]!r}, and its study has"
        f" {expected!r}: the row was edited; restore it"
    )


def comparisons(
    tables: Mapping[str, np.ndarray], labels: Mapping[str, str], margin: float
) -> list[Comparison]:
    """The comparisons of one family.

    `tables`: by key the differences (seeds, blocks) in per cent of the unit.

    Raises ConfigError for fewer than three seeds.
    """
    fewest = min(len(table) for table in tables.values())
    if fewest < MIN_SEEDS:
        raise ConfigError(f"a decision needs {MIN_SEEDS} seeds or more, got {fewest}")
    differences = [Paired.of(table) for table in tables.values()]
    compared = []
    for (key, table), each, decided in zip(
        tables.items(), differences, decisions(differences, margin), strict=True
    ):
        low, high = each.interval()
        n_seeds, n_blocks = table.shape
        compared.append(
            Comparison(
                against=key,
                label=labels[key],
                effect=each.mean,
                low=low,
                high=high,
                p=each.p,
                p_holm=decided.p_none,
                p_margin=each.p_outside(margin),
                p_margin_holm=decided.p_outside,
                decision=decided.decision,
                detectable=each.detectable(len(tables)),
                n_seeds=n_seeds,
                n_blocks=n_blocks,
            )
        )
    return compared


def without_favor(
    comparison: Comparison, circuit_diverged: bool, other_diverged: bool
) -> Comparison:
    """Undecided in place of a decision that favors an adapter of which a seed diverged.

    The other seeds of such an adapter are a favorable selection.
    """
    favors_circuit = comparison.decision in (BETTER, EQUIVALENT)
    favors_other = comparison.decision in (WORSE, EQUIVALENT)
    if (circuit_diverged and favors_circuit) or (other_diverged and favors_other):
        return replace(comparison, decision=UNDECIDED)
    return comparison


def _refuse_few_seeds(
    summary: Summary, diverged: Mapping[str, Sequence[int]], folder: Path
) -> None:
    """Raise TrainingError unless there is a unit, and each question has three seeds or more."""
    new_study = (
        f"Start a study in another folder than {folder}, with another --steps or --batch-size"
    )
    if diverged[UNIT]:
        raise TrainingError(
            f"cannot decide: seed {_listed(diverged[UNIT])} of {summary[UNIT].label} diverged, and"
            f" its gain is the unit. {new_study}"
        )
    for key, seeds in diverged.items():
        lost = sorted({*seeds, *diverged[CIRCUIT]})
        n_left = len(summary.study.seeds) - len(lost)
        if n_left < MIN_SEEDS:
            raise TrainingError(
                f"cannot decide: seed {_listed(lost)} of {summary[CIRCUIT].label} or"
                f" {summary[key].label} diverged, so {n_left} of {len(summary.study.seeds)} seeds"
                f" count, and a decision needs {MIN_SEEDS}. {new_study}"
            )


def _told(summary: Summary, diverged: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """A sentence on each adapter of which a seed diverged, or learned nothing."""
    n_seeds = len(summary.study.seeds)
    for key, seeds in diverged.items():
        result = summary[key]
        if seeds:
            yield (
                f"Seed {_listed(seeds)} of {result.label} diverged: {n_seeds - len(seeds)} of"
                f" {n_seeds} seeds count, and no decision favors it."
            )
        untrained = [seed for seed, row in result.successes.items() if row["best_step"] == 0]
        if untrained:
            yield (
                f"Seed {_listed(untrained)} of {result.label} did not improve on the base, at the"
                f" learning rate {result.lr:g} that its search chose, so the interval is wide."
            )


def _listed(seeds: Sequence[int]) -> str:
    return named([str(seed) for seed in seeds])


def sentence(twins: Sequence[Comparison], margin: float) -> str:
    """The verdict in words."""
    relations = {
        BETTER: "was better than",
        EQUIVALENT: "was equivalent to",
        WORSE: "was worse than",
        UNDECIDED: "was not shown to differ from",
    }
    by_relation: dict[str, list[str]] = {}
    for twin in twins:
        by_relation.setdefault(twin.decision, []).append(f"the one with {twin.label}")
    clauses = [
        f"{relations[decision]} {(' or ' if decision == UNDECIDED else ' and ').join(names)}"
        for decision, names in by_relation.items()
    ]
    told = f"In this study the adapter with the trained circuit {', and '.join(clauses)}."
    most = max(twin.detectable for twin in twins)
    if all(twin.decision == BETTER for twin in twins):
        return f"{told} So the study shows a benefit from the circuit."
    undecided = [twin for twin in twins if twin.decision == UNDECIDED and twin.detectable > margin]
    if undecided:
        most = max(twin.detectable for twin in undecided)
        n_seeds = max(twin.n_seeds for twin in undecided)
        # errors shrink with the square root of the number of seeds
        enough = math.ceil(n_seeds * (most / margin) ** 2)
        return (
            f"{told} The study cannot decide about {' and '.join(twin.label for twin in undecided)}:"
            f" it could detect only a difference above {most:.1f} % of LoRA's gain, and the margin is"
            f" {margin:g} %. To decide, it would need about {enough} seeds, or more steps."
        )
    return f"{told} It could detect a difference above {most:.1f} % of LoRA's gain."


def check(file: Path) -> Verdict:
    """Compute a verdict again from the rows next to it: rows.jsonl, or NAME.jsonl.xz of NAME.json.

    Raises ConfigError if it is none, CheckpointError or InputError if a row or the study was edited,
    and VerificationError if the rows give another one; the message names what differs.
    """
    try:
        written = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is no verdict ({error})") from error
    try:
        protocol = Protocol(**written["protocol"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no verdict: its protocol lacks or has {error}") from error
    kept = file.with_suffix(".jsonl.xz")  # as results/verdicts has them
    verdict = _decide(protocol, load(kept), file.parent) if kept.exists() else decide(file.parent)
    computed = _flat(asdict(verdict))
    stated = _flat(written)
    for name in sorted(computed.keys() | stated.keys()):
        ours = computed.get(name)
        theirs = stated.get(name)
        if isinstance(ours, float) and isinstance(theirs, float):
            is_equal = math.isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        else:
            is_equal = ours == theirs and type(ours) is type(theirs)
        if not is_equal:
            raise VerificationError(
                f"{file} does not follow from the rows in {file.parent}: {name} is {theirs!r}, the"
                f" rows give {ours!r}"
            )
    return verdict


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every number, text and empty part of JSON, by a name such as `comparisons.0.effect`."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {name.removeprefix("."): value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{name}.{key}")
    return flat


def _table(circuit: Result, other: Result) -> np.ndarray:
    """The differences of test losses (seeds, blocks), nats per token, for seeds that both have."""
    seeds = sorted(circuit.successes.keys() & other.successes.keys())
    return np.array(
        [
            np.subtract(
                circuit.successes[seed]["test_losses"], other.successes[seed]["test_losses"]
            )
            for seed in seeds
        ]
    )


def _loss(result: Result) -> float:
    if result.metric is None:
        raise ConfigError(f"{result.label} has no result yet; run the command of the study again")
    return result.metric.mean


def _size(result: Result) -> Size:
    method = result.method
    return Size(result.label, method.trainable, method.deployed, result.lr, _loss(result))
