"""A resolved study, as study.json stores it: every method with its role, learning rates, hash and parameter counts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qpeft import methods
from qpeft.compare.rate_search import RateSearch, search_rates
from qpeft.compare.rows import SCHEMA, Base, MethodConfig, Row, cell_id
from qpeft.compare.study import (
    MethodKey,
    MetricName,
    Published,
    Role,
    Seed,
    TaskName,
    Training,
    Tuning,
    check_keys,
    described,
)
from qpeft.errors import CheckpointError, InputError
from qpeft.files import read_json, write_json
from qpeft.training.task_types import TASKS
from qpeft.user_files import without_folder, without_folders

STUDY = "study.json"

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Resolved(BaseModel):
    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True, allow_inf_nan=False)


class ResolvedMethod(_Resolved):
    """A method of the study; members of equal-budget blocks are methods as well."""

    key: MethodKey
    label: str
    role: Role
    against: str | None = None  # of a control: the key of the method that it is a control of
    method: str
    kind: Literal["quantum", "classical"] = "classical"
    prunes_ranks: bool = False
    report_note: str = ""  # a sentence for the report
    host: str = "lora"
    settings: dict[str, Any] = {}
    backend: dict[str, Any] = {}
    lr_base: float | None = None
    rates: list[float] = []  # the grid of learning rates, sorted; none where nothing is trained
    hash: str
    trainable: _Count
    deployed: _Count
    note: str | None = None
    published: list[Published] = []

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Add what a study.json of qpeft 0.1 lacks, from the record of the method."""
        is_old = isinstance(values, dict) and "kind" not in values
        record = methods.find(str(values.get("method"))) if is_old else None
        if record is None:
            return values
        return values | {name: getattr(record, name) for name in ("kind", "prunes_ranks", "report_note")}

    @property
    def is_trained(self) -> bool:
        """False for the base model as it is."""
        return bool(self.rates)

    def owns(self, row: Row, base: Base, data_sha256: str) -> bool:
        """Whether `row` is of this method, base, tokenizer and data. Files of a user may be moved."""
        if row.base.tokenizer_sha256 not in (None, base.tokenizer_sha256):
            return False
        found = (_content(row.method_config), row.base.sha256, row.data.sha256)
        return found == (_content(self), base.sha256, data_sha256)


class ResolvedMember(_Resolved):
    """A method in an equal-budget block."""

    key: str
    trainable: _Count
    ratio: float  # to the budget
    over_budget: bool
    ranked: bool


class ResolvedBlock(_Resolved):
    """An equal-budget block: methods at the parameter count of the method `of`, which is the first member."""

    of: str
    budget: int = Field(gt=0, lt=2**63)
    members: list[ResolvedMember]


class ResolvedData(_Resolved):
    """Names of the data sources, the hash of the split data, and notes on it."""

    id: str
    eval_data: str | None = None
    test_data: str | None = None
    sha256: str = ""
    notes: list[str] = []  # what a reader of the report must know


class ResolvedStudy(_Resolved):
    """The content of study.json, under the same keys."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    name: str = Field(validation_alias=AliasChoices("study", "name"), serialization_alias="study")
    title: str
    question: str
    metric: MetricName
    reference: str
    task: TaskName
    base: Base
    data: ResolvedData
    training: Training
    test_blocks: int = 0
    costs: bool = True
    seeds: list[Seed] = Field(min_length=1)
    tuning: Tuning = Tuning()
    max_hours: float = 8.0
    command: str = ""
    methods: list[ResolvedMethod]
    blocks: list[ResolvedBlock] = []

    @model_validator(mode="after")
    def _is_consistent(self) -> ResolvedStudy:
        check_keys(self)
        keys = [method.key for method in self.methods]
        members = [member.key for block in self.blocks for member in block.members]
        if wrong := {key for key in keys if keys.count(key) > 1} | set(members).difference(keys):
            raise ValueError(f"methods: not one method with the key {min(wrong)!r}")
        return self

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "test_loss"

    @property
    def is_language_model(self) -> bool:
        """Whether the task predicts the tokens of texts."""
        return TASKS[self.task].is_language_model

    def is_deterministic(self, method: ResolvedMethod) -> bool:
        """Whether the result is equal for all seeds. An untrained classifier has a new head, drawn from the seed."""
        return self.is_language_model and not method.is_trained

    def seeds_of(self, method: ResolvedMethod) -> Sequence[int]:
        """The seeds that the method runs with."""
        return self.seeds[:1] if self.is_deterministic(method) else self.seeds

    def cell_id(self, method: ResolvedMethod, name: str) -> str:
        """The identity of the method's row `name`."""
        return cell_id(self.name, method.key, method.hash, name)

    def row_of(
        self, method: ResolvedMethod, rows: Mapping[str, Row], name: str, seed: int, rates: Sequence[float]
    ) -> Row | None:
        """The row `name` of the method among `rows`, by cell_id; None if it is missing or that of other work."""
        row = rows.get(self.cell_id(method, name))
        if row is None or row.seed != seed or row.train.lr not in (None, *rates):
            return None
        return row if method.owns(row, self.base, self.data.sha256) else None

    def trial_of(self, method: ResolvedMethod, rows: Mapping[str, Row], rate: float) -> Row | None:
        """The row of the trial of a learning rate, or None."""
        return self.row_of(method, rows, f"lr{rate:g}", self.tuning.seed, [rate])

    def search(self, method: ResolvedMethod, rows: Mapping[str, Row]) -> RateSearch:
        """The learning rates that the method tries, as far as `rows`, by cell_id, determine them."""

        def loss_of(rate: float) -> float | None:
            row = self.trial_of(method, rows, rate)
            if row is None or row.status not in ("success", "diverged"):
                return None
            return row.quality.valid_loss if row.succeeded else math.inf

        return search_rates(method.rates, loss_of)

    def write(self, folder: Path) -> None:
        """Write study.json."""
        write_json(folder / STUDY, self.model_dump())


def _content(part: ResolvedMethod | MethodConfig) -> str:
    """What the method is, as comparable text, without the folders of files."""
    settings, backend = without_folders(part.settings), without_folders(part.backend)
    parts = [without_folder(part.method), part.host, settings, backend, part.hash]
    return json.dumps(parts, sort_keys=True)


def read_study(folder: Path) -> ResolvedStudy:
    """Read study.json. Raises InputError if it is missing and CheckpointError if it is damaged."""
    path = folder / STUDY
    if not path.exists():
        raise InputError(f"{folder} holds no study ({STUDY} is missing); give the --out folder of `qpeft compare run`")
    try:
        values = read_json(path)
        found = values["schema"]
        study = ResolvedStudy.model_validate(values) if found == SCHEMA else None
    except (ValueError, KeyError, TypeError) as error:
        what = described(error) if isinstance(error, ValidationError) else error
        again = "delete it and run `qpeft compare run` again with its command"
        raise CheckpointError(f"{path} is damaged ({what}); {again}") from error
    if study is None:
        raise CheckpointError(f"{path} has schema {found!r}, this qpeft reads {SCHEMA}; use the qpeft that wrote it")
    return study
