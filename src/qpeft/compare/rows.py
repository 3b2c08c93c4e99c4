"""Result rows: what was measured of each cell of a study. Tables and report are made from them alone.

    DIR/rows.jsonl    one line per finished cell, appended by the one process that runs the study

A cell is identified by its `cell_id`, STUDY/METHOD/CONFIG_HASH/NAME, where NAME is `seed0` for a training run with one
seed (roles main, equal_budget, control), `lr0.001` for a trial of a learning rate (role tuning), or `cost` for time and
memory measured alone on the machine (role cost). The hash covers the method's config with its grid of learning rates,
the base, the data and the training, so that a changed cell never matches an old row.

A later line of the same cell replaces an earlier one. An incomplete last line, which a kill leaves, is ignored. qpeft
0.1 wrote one file per row, DIR/rows/STUDY/METHOD/CONFIG_HASH/NAME.json; those are read as well.

Numbers are stored at full precision. NaN and infinity are stored as null, and every null measurement of `quality`,
`cost`, `convergence` and `capacity` has its reason under `null_reasons`, by dotted name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qpeft.errors import CheckpointError
from qpeft.files import open_own, parse_json, read_json, write_text

SCHEMA = 1
ROWS = "rows.jsonl"

_LARGEST = 1e100  # of a number, so that its square is finite

Number = int | float
_POINT: tuple[Any, ...] = (int, Number | None, Number | None, Number)


def _point(values: list[Any]) -> list[Any]:
    is_valid = [isinstance(value, kind) for value, kind in zip(values, _POINT, strict=False)]
    if len(values) != 4 or not all(is_valid):
        raise ValueError("a point is [step, training loss or null, validation loss or null, seconds]")
    return values


Curve = list[Annotated[list[Any], AfterValidator(_point)]]


class Part(BaseModel):
    """A part of a row. A field that was never set is absent from its JSON; a field without a value is null there."""

    model_config = ConfigDict(extra="allow")

    def to_json(self) -> dict[str, Any]:
        """The fields that were set."""
        return self.model_dump(exclude_unset=True)


class MethodConfig(Part):
    """What the cell trains."""

    method: str = ""
    kind: str | None = None  # quantum or classical
    host: str = "lora"
    settings: dict[str, Any] = {}
    hash: str = ""
    backend: dict[str, Any] = {}


class Base(Part):
    """The base model."""

    id: str = ""
    sha256: str = ""
    dtype: str = ""
    params_total: int = 0
    tokenizer_sha256: str | None = None  # of the tokenizer or image processor; 0.1 did not record it


class Data(Part):
    """The data, and what the run has seen of it."""

    id: str = ""
    sha256: str = ""
    order_sha256: str | None = None  # of the order of the examples
    tokens_seen: int | None = None
    tokens_per_step: Number | None = None
    splits: dict[str, int] = {}  # train_tokens, valid_tokens, test_tokens
    left_out: list[str] = []  # warnings of rows that are not used


class Train(Part):
    """The run."""

    lr: Number | None = None
    lr_grid: list[Number] = []
    lr_at_grid_edge: Literal["low", "high"] | None = None
    optimizer: str | None = None
    schedule: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    weight_decay: Number | None = None
    max_grad_norm: Number | None = None
    seconds: Number | None = None
    curve: Curve = []
    circuits: dict[str, Any] | None = None  # what the backend's circuits cost


class Quality(Part):
    """Losses in nats or squared errors, and scores. Test values are those at the step of the lowest validation loss."""

    valid_loss: Number | None = None  # the lowest
    valid_loss_last: Number | None = None
    best_step: int | None = None
    valid_loss_on_backend: Number | None = None
    test_loss: Number | None = None
    test_ppl: Number | None = None
    bits_per_byte: Number | None = None
    test_accuracy: Number | None = None
    test_accuracy_interval: list[Number] | None = None
    test_mcc: Number | None = None
    test_f1: Number | None = None
    test_pearson: Number | None = None
    test_spearman: Number | None = None
    bleu: Number | None = None
    bleu_signature: str | None = None
    bleu_lowercase: Number | None = None
    nist: Number | None = None
    chrf: Number | None = None
    rouge1: Number | None = None
    rouge2: Number | None = None
    rougeL: Number | None = None  # noqa: N815  (the metric's name)
    rougeL_coco: Number | None = None  # noqa: N815
    cider: Number | None = None
    meteor: Number | None = None
    bertscore_f1: Number | None = None
    texts: list[str] | None = None
    forgetting_shifted: Number | None = None


class StepTimes(Part):
    """Milliseconds of a training step."""

    median: Number | None = None
    p10: Number | None = None
    p90: Number | None = None


class Cost(Part):
    """Sizes (of runs), and times and memory (of role cost)."""

    params_trainable: int | None = None
    params_head: int | None = None
    params_deployed: int | None = None
    params_generator: int | None = None
    bytes_stored: int | None = None
    optimizer_bytes: int | None = None
    peak_mem_bytes: int | None = None
    peak_mem_reserved_bytes: int | None = None
    peak_mem_kind: str | None = None
    flops_per_token: Number | None = None
    step_ms: StepTimes | None = None
    reference_step_ms: StepTimes | None = None
    step_ratio: Number | None = None
    infer_tok_s: dict[str, dict[str, Number | None]] | None = None  # by batch size: base, unmerged, merged
    infer_overhead_pct: Number | None = None
    step_twin_ratio: Number | None = None  # the reference's step over that of its twin, itself: 1 without noise
    infer_twin_ratio: Number | None = None  # the same of the base's tokens per second

    @property
    def noise(self) -> float | None:
        """The larger relative difference between measurements of a model and of its twin; None if there are none."""
        ratios = [ratio for ratio in (self.step_twin_ratio, self.infer_twin_ratio) if ratio]
        return max((max(ratio, 1 / ratio) - 1 for ratio in ratios), default=None)


class Convergence(Part):
    """Measurements of the loss curve; see `measurements.convergence`."""

    auc: Number | None = None
    auc_per_token: Number | None = None
    valid_loss_first: Number | None = None
    valid_loss_last: Number | None = None
    valid_loss_best: Number | None = None
    best_step: int | None = None
    train_loss_last: Number | None = None
    train_loss_smoothed: Number | None = None
    spikes: int | None = None
    diverged: bool | None = None


class Place(Part):
    """Capacity measurements of one adapted module or one block."""

    name: str = ""
    layer: int = 0
    effective_rank: Number | None = None
    mean_share: Number | None = None
    linear_share: Number | None = None
    update_ratio: Number | None = None
    weight_numerical_rank: int | None = None
    cka: Number | None = None


class Capacity(Part):
    """Means over modules and over blocks; see `measurements.capacity`."""

    measured_at: str | None = None
    n_tokens: int | None = None
    n_modules: int | None = None
    effective_rank: Number | None = None
    mean_share: Number | None = None
    linear_share: Number | None = None
    update_ratio: Number | None = None
    jacobian_rank: Number | None = None
    change_at_2x: Number | None = None
    change_at_minus_x: Number | None = None
    weight_effective_rank: Number | None = None
    weight_numerical_rank: Number | None = None
    weight_stable_rank: Number | None = None
    weight_norm_ratio: Number | None = None
    block_effective_rank: Number | None = None
    block_mean_share: Number | None = None
    block_linear_share: Number | None = None
    block_update_ratio: Number | None = None
    cka: Number | None = None
    cka_last: Number | None = None
    modules: list[Place] = []
    blocks: list[Place] = []


class Environment(Part):
    """Versions and hardware."""

    python: str | None = None
    device: str | None = None
    device_count: int | None = None
    threads: int | None = None
    os: str | None = None


class Row(BaseModel):
    """The result of one cell, whether it succeeded or failed."""

    model_config = ConfigDict(extra="allow")

    cell_id: str
    study: str
    method: str  # the study's key of the method; the kind of adapter is method_config.method
    label: str = ""
    method_config: MethodConfig = Field(default_factory=MethodConfig)
    role: str
    seed: int
    status: str = "skipped"  # success, failed, diverged, oom, timeout or skipped
    error_type: str | None = None
    error_msg: str | None = None
    traceback_tail: str | None = None
    base: Base = Field(default_factory=Base)
    data: Data = Field(default_factory=Data)
    train: Train = Field(default_factory=Train)
    quality: Quality = Field(default_factory=Quality)
    cost: Cost = Field(default_factory=Cost)
    convergence: Convergence = Field(default_factory=Convergence)
    capacity: Capacity = Field(default_factory=Capacity)
    env: Environment = Field(default_factory=Environment)
    created_at: str | None = None
    null_reasons: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The last part of `cell_id`: seed0, lr0.001, cost."""
        return self.cell_id.rpartition("/")[2]

    @property
    def succeeded(self) -> bool:
        return self.status == "success"

    def updated(self, **fields: Any) -> Row:
        """A copy with other values of these fields."""
        return self.model_copy(update=fields)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON holds it: without NaN and infinity, and without fields of its parts that were never set."""
        found: dict[str, Any] = {"schema": SCHEMA}
        for name in type(self).model_fields:
            value = getattr(self, name)
            found[name] = value.to_json() if isinstance(value, Part) else value
        return _without_nan({**found, **(self.model_extra or {})})


_KEYS = {"schema", *Row.model_fields}


def cell_id(study: str, method: str, config_hash: str, name: str) -> str:
    """The identity of a cell; `method` is the study's key of the method."""
    return f"{study}/{method}/{config_hash}/{name}"


def row_from_json(values: Any) -> Row:
    """The row of a JSON object. Raises ValueError for anything else."""
    if not isinstance(values, dict) or "schema" not in values:
        raise ValueError("it is no row: it has no schema")
    if values["schema"] != SCHEMA:
        raise ValueError(f"it has schema {values['schema']!r}, this qpeft reads {SCHEMA}; use the qpeft that wrote it")
    if missing := _KEYS - values.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    try:
        row = Row.model_validate({k: v for k, v in _without_nan(values).items() if k != "schema"})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if row.cell_id != cell_id(row.study, row.method, row.method_config.hash, row.name):
        raise ValueError(f"cell_id {row.cell_id!r} is not that of its study, method and hash")
    return row


def read_rows(folder: Path) -> dict[str, Row]:
    """All rows of a study's folder, by `cell_id`.

    Raises:
        CheckpointError: a line, or a file of qpeft 0.1, is damaged or has another schema.
    """
    found = {row.cell_id: row for row in map(_read_file, sorted((folder / "rows").rglob("*.json")))}
    return found | {row.cell_id: row for row in _read_lines(folder / ROWS)}


class RowFile:
    """The rows of a study's folder while one process, which holds the folder's lock, runs the study."""

    def __init__(self, folder: Path):
        """Read the rows, and remove the incomplete last line of a killed run. Raises CheckpointError."""
        self._path = folder / ROWS
        self.rows = read_rows(folder)
        text = self._path.read_bytes() if self._path.exists() else b""
        if text and not text.endswith(b"\n"):
            write_text(self._path, "".join(line_of(row) for row in _read_lines(self._path)))

    def append(self, row: Row) -> None:
        """Add the row of a cell; it is on the disk when this returns."""
        line = line_of(row)
        with os.fdopen(open_own(self._path, os.O_APPEND), "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows[row.cell_id] = row_from_json(json.loads(line))  # as the next run reads it


def line_of(row: Row) -> str:
    """The row as a line of JSON, ending in a newline."""
    return json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False) + "\n"


def _read_file(path: Path) -> Row:
    try:
        row = row_from_json(read_json(path))
        if path.with_suffix("").parts[-4:] != tuple(row.cell_id.split("/")):
            raise ValueError(f"it is the row of another cell, {row.cell_id}")
        return row
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it, and its cell runs again") from error


def _read_lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; remove it")
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(row_from_json(parse_json(line)))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged in line {number} ({error}); delete the line, and its cell runs again"
            ) from error
    return rows


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with null for NaN, infinity and numbers beyond _LARGEST, each named in `null_reasons`."""
    reasons = dict(row.get("null_reasons") or {})

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: clean(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, name) for item in value]
        if isinstance(value, int | float) and not abs(value) <= _LARGEST:  # NaN as well
            is_finite = isinstance(value, int) or math.isfinite(value)
            reasons.setdefault(name, f"beyond {_LARGEST:g}" if is_finite else "not a finite number")
            return None
        return value

    cleaned = {key: clean(value, key) for key, value in row.items() if key != "null_reasons"}
    return {**cleaned, "null_reasons": reasons}
