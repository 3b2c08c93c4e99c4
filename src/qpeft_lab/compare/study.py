"""A study: which methods are compared, on which base and data, with which seeds.

`Study` is what a YAML file says. `PlannedStudy`, the content of study.json in the folder of a
study, adds the size of every method, its learning rates, and the hash of everything that determines
its rows. All fields are validated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields as fields_of
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qpeft.checks import MOST, unknown
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.files import read_json
from qpeft.user_code import is_file
from qpeft_lab.compare import BUILT_IN, RECIPES
from qpeft_lab.compare.metrics import METRICS, OF_CLASSES, OF_NUMBERS, OF_TEXTS
from qpeft_lab.compare.rate_search import RateSearch, search_rates
from qpeft_lab.compare.rows import Row, succeeded
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.files import read_yaml, unsealed
from qpeft_lab.settings import (
    EVALUATED_BLOCKS,
    HIGHEST_SEED,
    RunSettings,
    SharedSettings,
    described,
    settings_from,
)
from qpeft_lab.training.generate import Decoding

STUDY = "study.json"
LEAST_SHARE = 0.8  # of the size that a method shall have

Seed = Annotated[int, Field(strict=True, ge=0, le=HIGHEST_SEED)]
MethodKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+@-]*$")]  # in names of files
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# a spreadsheet must not read it as a formula
_Label = Annotated[str, Field(pattern=r"^[^=+@\t\r\n-][^\t\r\n]*$")]


def _one_of(kind: str, choices: Mapping[str, Any] | Sequence[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in choices:
            raise ValueError(unknown(kind, name, choices))
        return name

    return AfterValidator(check)


def _known(values: Any, names: Sequence[str]) -> Any:
    """The values. Raises ValueError if a mapping has other names, before its values are validated."""
    for name in values if isinstance(values, dict) else ():
        if name not in names:
            raise ValueError(unknown("field", name, names))
    return values


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, values: Any) -> Any:
        return _known(values, list(cls.model_fields))


class Published(_Strict):
    """A result that others published for a method. The report shows it next to the measured value."""

    # in the unit in which the report shows the metric: an accuracy, F1 or correlation in %
    value: float
    metric: Annotated[str, _one_of("metric", METRICS)] | None = None  # default: that of the study
    data: str | None = None  # the `data` that it is for; default: any
    source: _Label
    note: _Label | None = None


class Method(_Strict):
    """A method of `qpeft train` with its settings.

    With `at_size_of` another method, it has the largest of `values` for the setting `vary` with
    which it has at most as many trainable parameters as that one.
    """

    key: MethodKey
    label: _Label = ""  # a plan has the key instead of an empty one
    method: str
    host: str = RunSettings.host
    settings: dict[str, Any] = {}
    # where the circuit runs in training: the arguments of `qpeft.set_backend`
    backend: dict[str, Any] = {}
    lr: float | None = Field(default=None, gt=0)  # the middle of its grid of learning rates
    against: str | None = None  # of a control: the key of the method that it is a control of
    at_size_of: str | None = (
        None  # the key of the method whose size it has, and with which it is compared
    )
    vary: str | None = None
    values: list[int] = []
    note: str = ""  # a sentence for the report
    published: list[Published] = []

    @property
    def role(self) -> str:
        """`control`, `equal_budget` at the size of another, or `main`."""
        if self.against:
            return "control"
        return "equal_budget" if self.at_size_of else "main"


class PlannedMethod(Method):
    """A method of a planned study, at its size."""

    kind: Literal["quantum", "classical"] = "classical"
    rates: list[float] = []  # the grid of learning rates, sorted; none where nothing is trained
    hash: str
    files: dict[str, str] = {}  # the hashes of the user's files, which `hash` covers
    trainable: _Count
    deployed: _Count


class Tuning(_Strict):
    """Learning rates: every method tries its middle learning rate times each of `grid`, on
    validation data.
    """

    grid: list[_Factor] = Field(default=[0.3, 1.0, 3.0, 10.0], min_length=1)
    seed: Seed = 1000  # of the trials; not one of `seeds`


def _shared(values: Any) -> Any:
    if not isinstance(values, SharedSettings | dict):
        raise ValueError(
            f"fields of a run are needed, such as {{model: gpt2, data: text.txt}}, got {values!r}"
        )
    run = settings_from(SharedSettings, values) if isinstance(values, dict) else values
    if run.eval_blocks is None:
        run.eval_blocks = EVALUATED_BLOCKS
    return run


@dataclass(frozen=True)
class Generation(Decoding):
    """Answers to the test prompts, which are scored by all metrics `OF_TEXTS`; BERTScore only with
    an encoder.
    """

    n_prompts: Annotated[int, Field(ge=0, le=MOST)] = 64  # 0: all
    bertscore_model: str | None = None


class Study(_Strict):
    """A comparison of methods in equal runs, as a YAML file describes it: `run` has their base,
    data and training.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    question: str
    run: Annotated[SharedSettings, BeforeValidator(_shared)]
    test_data: str | None = Field(
        default=None, description="Test data, read once per run, at its end."
    )
    metric: Annotated[
        str, _one_of("metric", ("test_loss", *OF_CLASSES, *OF_NUMBERS, *OF_TEXTS))
    ] = Field(
        default_factory=lambda validated: _usual_metric(validated["run"]), validate_default=True
    )
    reference: str = "lora"
    seeds: list[Seed] = Field(
        default=[0, 1, 2], min_length=1, description="Seeds of the final runs, such as 0,1,2,3,4."
    )
    tuning: Tuning = Tuning()
    test_blocks: int = Field(default=96, ge=0, le=MOST)
    generation: Annotated[
        Generation | None,
        BeforeValidator(lambda values: _known(values, [f.name for f in fields_of(Generation)])),
    ] = None
    costs: bool = True
    keep_hidden_states: bool = Field(
        default=False,
        description="Compute the layers below the lowest adapted one once for all runs.",
    )
    lr_scale: float = Field(
        default=1.0,
        gt=0,
        description="Factor for every learning rate: another base may need other ones.",
    )
    smoke: dict[str, Any] = {}  # fields of the config of a smoke test's base, with its `model_type`
    methods: Sequence[Method] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name in (f.name for f in fields_of(SharedSettings)):
                raise ValueError(f"{name} is a field of `run`; write `run: {{{name}: ...}}`")
        return _known(values, list(cls.model_fields))

    @model_validator(mode="after")
    def _has_consistent_keys(self) -> Study:
        keys = [method.key for method in self.methods]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"methods: duplicate key {min(twice)!r}")
        named = [("reference", self.reference)]
        named += [
            (f"methods: the control {m.key} is against", m.against)
            for m in self.methods
            if m.against
        ]
        named += [
            (f"methods: {m.key} is at_size_of", m.at_size_of) for m in self.methods if m.at_size_of
        ]
        for field, name in named:
            if name not in keys:
                raise ValueError(
                    f"{field}: no method has the key {name!r}; there are {', '.join(keys)}"
                )
        return self

    def check(self) -> None:
        """Raise ConfigError for a study that cannot run. It executes the files of users' methods."""
        if len({*self.seeds, self.tuning.seed}) <= len(self.seeds):
            raise ConfigError(
                "all seeds, and tuning.seed, must differ: learning rates have a separate seed"
            )
        with errors_of("run"):
            self.run.check()
        sized = {method.key for method in self.methods if method.at_size_of}
        for method in self.methods:
            with errors_of(f"method {method.key}"):
                self.run_of(method).check()
                if method.at_size_of in sized:
                    raise ConfigError(
                        f"at_size_of {method.at_size_of}, whose size another determines"
                    )
                if (method.vary is None) != (not method.values) or (
                    method.vary and method.at_size_of is None
                ):
                    raise ConfigError(
                        "give at_size_of, vary, the name of a setting, and its values together"
                    )
                if method.values != sorted(method.values):
                    raise ConfigError(
                        "values must increase, from the fewest trainable parameters to the most"
                    )
        if self.generation is not None:
            self.generation.check()
        of_task = OF_TEXTS if self.run.is_language_model else _metrics_of(self.run.task)
        usable = ("test_loss", *of_task)
        if self.metric not in usable:
            raise ConfigError(
                f"metric {self.metric} is not one of task {self.run.task}; use {', '.join(usable)}"
            )
        if self.metric in OF_TEXTS and self.generation is None:
            raise ConfigError(f"metric {self.metric} needs `generation`, whose texts it scores")
        if self.metric == "bertscore_f1" and not (
            self.generation and self.generation.bertscore_model
        ):
            raise ConfigError("metric bertscore_f1 needs generation.bertscore_model")

    def run_of(self, method: Method, settings: Mapping[str, Any] | None = None) -> RunSettings:
        """The run of a method, with other settings than its own if there are some."""
        own = {"method_settings": dict(method.settings if settings is None else settings)}
        own |= {"backend_settings": dict(method.backend)}
        return self.run.with_method(method=method.method, host=method.host, **own)


class PlannedStudy(Study):
    """The content of study.json."""

    base_sha256: str  # with its tokenizer or image processor
    params_total: int = 0  # of the base
    data_sha256: str  # of the split data
    data_notes: list[str] = []  # what a reader of the report must know of the data
    command: str = ""
    methods: Sequence[PlannedMethod] = Field(min_length=1)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "test_loss"

    @property
    def reference_hash(self) -> str:
        """The hash of the method that times are compared with."""
        return next(method.hash for method in self.methods if method.key == self.reference)

    def is_deterministic(self, method: PlannedMethod) -> bool:
        """Whether the result is equal for all seeds. An untrained classifier has a new head, drawn
        from the seed.
        """
        return self.run.is_language_model and not method.rates

    def row_of(self, method: PlannedMethod, rows: Mapping[str, Row], name: str) -> Row | None:
        """The row `name` of the method among `rows`, by cell_id, or None. Its hash covers what it
        depends on.
        """
        return rows.get(f"{self.name}/{method.key}/{method.hash}/{name}")

    def search(self, method: PlannedMethod, rows: Mapping[str, Row]) -> RateSearch:
        """The learning rates that the method tries, as far as `rows`, by cell_id, determine them."""

        def loss_of(rate: float) -> float | None:
            row = self.row_of(method, rows, f"lr{rate:g}")
            if row is None or row["status"] not in ("success", "diverged"):
                return None
            return row["valid_loss"] if succeeded(row) else math.inf

        return search_rates(method.rates, loss_of)


def rates_of(middle: float, grid: Sequence[float]) -> list[float]:
    """The learning rates of a grid around `middle`, sorted, with three digits; a single one as it is."""
    if list(grid) == [1.0]:
        return [middle]
    return sorted({float(f"{middle * factor:.3g}") for factor in grid})


def is_comparable(ratio: float) -> bool:
    """Whether `ratio` of the size that a method shall have is close enough to 1 for a comparison by
    quality.
    """
    return LEAST_SHARE <= ratio <= 1


@contextmanager
def errors_of(part: str) -> Iterator[None]:
    """Name the part of the study in a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{part}: {error}") from error


def read_study(folder: Path) -> PlannedStudy:
    """Read study.json. Raises InputError if it is missing and CheckpointError if it is damaged."""
    path = folder / STUDY
    if not path.exists():
        raise InputError(
            f"{folder} holds no study ({STUDY} is missing); give the --out folder of `qpeft compare"
            " run`"
        )
    try:
        return PlannedStudy.model_validate(unsealed(read_json(path)))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({described(error)}); delete it and run `qpeft compare run` again"
            " with its command"
        ) from error


def load_study(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """The built-in study of that name, or the study in that file, with `overrides` by dotted name.

    Raises ConfigError with the name of the study and of the invalid field.
    """
    values = _read(name_or_path)
    _replace(values, overrides or {})
    try:
        study = Study.model_validate(values)
        study.check()
    except ValueError as error:
        raise ConfigError(f"study {name_or_path}: {described(error)}") from error
    return study


def code_of(name_or_path: str) -> list[str]:
    """The names FILE.py:NAME in a study. Loading, planning and running the study executes these
    files.
    """

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)
        elif is_file(value):
            yield value

    return sorted(set(texts(_read(name_or_path))))


def _usual_metric(run: SharedSettings) -> str:
    """That of GLUE's task, the first one of labelled data, or the loss."""
    return (
        f"test_{run.glue.metrics[0]}"
        if run.glue
        else next(iter(_metrics_of(run.task)), "test_loss")
    )


def _metrics_of(task: str) -> Sequence[str]:
    """The metrics of labelled data."""
    kind = TASKS.get(task)
    return (
        ()
        if kind is None or kind.is_language_model
        else tuple(OF_NUMBERS if kind.is_regression else OF_CLASSES)
    )


def _replace(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set fields by dotted name. A number of steps replaces one of epochs and the reverse."""
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = values
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        other = {"steps": "epochs", "epochs": "steps"}.get(last, "")
        if parents == ["run"] and f"run.{other}" not in changes:
            place.pop(other, None)
        place[last] = value


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path).expanduser()
    if name_or_path in BUILT_IN:
        place = files("qpeft_lab.compare") / "builtin" / f"{name_or_path}.yaml"
    elif path.is_file():
        place = path
    elif name_or_path in RECIPES:
        place = files("qpeft_lab.compare") / name_or_path
    else:
        raise ConfigError(
            f"{unknown('study', name_or_path, (*BUILT_IN, *RECIPES))}, or give the path of a YAML"
            " file"
        )
    return read_yaml(place, "`name`, `title`, `question` and `methods`")
