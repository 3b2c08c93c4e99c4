"""A study: which methods are compared, on which base and data, with which seeds. All fields are validated."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qpeft import methods
from qpeft.backends.settings import backend_settings
from qpeft.checks import MOST
from qpeft.compare.metrics import METRICS, OF_CLASSES, OF_NUMBERS, OF_TEXTS, Metric
from qpeft.errors import ConfigError, DataError
from qpeft.names import unknown
from qpeft.training.decoding import Decoding
from qpeft.training.glue import GlueTask, find_glue
from qpeft.training.settings import HIGHEST_SEED
from qpeft.training.task_types import TASKS

LEAST_RANKED = 0.8  # of a block's budget

Seed = Annotated[int, Field(ge=0, le=HIGHEST_SEED)]
MethodKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+@-]*$")]  # in names of files
Schedule = Literal["linear", "cosine", "constant"]
Role = Literal["main", "control", "equal_budget"]
_Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Label = Annotated[str, Field(pattern=r"^[^=+@\t\r\n-][^\t\r\n]*$")]  # a spreadsheet must not read it as a formula


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return name


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown("metric", name, METRICS))
    return name


def _compares_methods(name: str) -> str:
    choices = ("test_loss", *OF_CLASSES, *OF_NUMBERS, *OF_TEXTS)
    if name not in choices:
        raise ValueError(unknown("metric", name, choices))
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]
MetricName = Annotated[str, AfterValidator(_compares_methods)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Published(_Strict):
    """A result that others published for a method. The report shows it next to the measured value."""

    value: float  # in the unit in which the report shows the metric: an accuracy, F1 or correlation in %
    metric: Annotated[str, AfterValidator(_known_metric)] | None = None  # of METRICS; default: that of the study
    data: str | None = None  # the `data` that it is for; default: any
    source: _Label
    note: _Label | None = None


class _MethodFields(_Strict):
    label: _Label | None = None
    method: str
    host: str = "lora"
    settings: dict[str, Any] = {}
    lr: float | None = Field(default=None, gt=0)  # the middle of its grid of learning rates


class MethodSpec(_MethodFields):
    """A method of `qpeft train` with its settings."""

    key: MethodKey
    backend: dict[str, Any] = {}  # where the circuit runs in training: the arguments of `qpeft.set_backend`
    role: Literal["main", "control"] = "main"
    against: str | None = None  # of a control: the key of the method that it is a control of
    note: str | None = None
    published: Annotated[
        list[Published], BeforeValidator(lambda found: [found] if isinstance(found, dict) else found)
    ] = []

    @model_validator(mode="after")
    def _is_known(self) -> MethodSpec:
        try:
            record = methods.named(self.method)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.host not in methods.hosts():
            raise ValueError(unknown("host", self.host, methods.hosts()))
        if (self.role == "control") != (self.against is not None):
            raise ValueError("`against`, the key of the controlled method, is needed for role control and no other")
        if self.backend and not record.takes_backend:
            raise ValueError(f"backend is for methods with a circuit that runs on backends; {self.method} has none")
        try:
            backend_settings(self.backend)
        except ConfigError as error:
            raise ValueError(f"backend: {error}") from error
        return self

    @property
    def base_rate(self) -> float:
        """`lr`, or the default learning rate of the method."""
        return self.lr or methods.named(self.method).learning_rate


class Candidate(_MethodFields):
    """A method of an equal-budget block, with the largest of `values` for the setting `vary` that fits the budget."""

    key: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    vary: str | None = None
    values: list[int] = []

    @model_validator(mode="after")
    def _varies_something(self) -> Candidate:
        if (self.vary is None) != (not self.values):
            raise ValueError("give `vary`, the name of a setting, and its `values` together")
        if self.values != sorted(self.values):
            raise ValueError("`values` must increase, from the fewest trainable parameters to the most")
        return self


class Block(_Strict):
    """Methods at the trainable parameter count of the method `of`."""

    of: str
    methods: list[Candidate] = Field(min_length=1)


def is_ranked(ratio: float) -> bool:
    """Whether `ratio` of a block's budget is close enough to 1 for a place in the block's ranking."""
    return LEAST_RANKED <= ratio <= 1


class Training(_Strict):
    """Options of `qpeft train` that all methods share."""

    steps: int = Field(default=80, ge=1, le=MOST)
    epochs: float | None = Field(default=None, gt=0, le=MOST)  # instead of steps, which the plan sets
    batch_size: int = Field(default=4, ge=1, le=MOST)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=MOST)
    seq_len: int | None = Field(default=128, ge=2, le=MOST)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    lr_schedule: Schedule = "linear"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: int | None = Field(default=None, ge=1, le=MOST)  # default: 20 times per run
    eval_blocks: int = Field(default=24, ge=0, le=MOST)
    save_every: int | None = Field(default=None, ge=1, le=MOST)
    separator: str | None = None
    pad_rows: bool = False
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    prompt_column: str = "prompt"
    completion_column: str = "completion"

    @property
    def schedule(self) -> str:
        """The schedule of the learning rate, in words."""
        shape = "constant" if self.lr_schedule == "constant" else f"{self.lr_schedule} decay"
        return f"{shape} after {self.warmup:.0%} warm-up"


class Tuning(_Strict):
    """Learning rates: every method tries its middle learning rate times each of `grid`, on validation data."""

    grid: list[_Factor] = Field(default=[0.3, 1.0, 3.0, 10.0], min_length=1)
    seed: int = Field(default=1000, ge=0, le=HIGHEST_SEED)  # of the trials; not one of `seeds`


class Generation(_Strict):
    """Answers to the test prompts, which are scored by all metrics `OF_TEXTS`; two of them only where they are set."""

    max_new_tokens: int = Field(default=64, ge=1, le=MOST)
    n_prompts: int = Field(default=64, ge=0, le=MOST)  # 0: all
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    meteor: bool = False  # needs Java
    bertscore_model: str | None = None

    @model_validator(mode="after")
    def _can_decode(self) -> Generation:
        try:
            self.decoding.check()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def decoding(self) -> Decoding:
        """How the answers are generated."""
        return Decoding(**{known.name: getattr(self, known.name) for known in fields(Decoding)})


class Study(_Strict):
    """A comparison of methods on one base and one data set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    question: str
    base: str = "embedded"
    data: str = "numpy-docs"
    eval_data: str | None = None
    test_data: str | None = None
    task: TaskName = "causal-lm"
    metric: MetricName | None = None
    reference: str = "lora"
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    tuning: Tuning = Tuning()
    training: Training = Training()
    by_data: dict[str, Training] = {}  # by `data`: fields of `training` that `load_study` replaces for these data
    test_blocks: int = Field(default=96, ge=0, le=MOST)
    generation: Generation | None = None
    capacity: bool = True
    costs: bool = True
    general_data: str | None = None  # a general text; forgetting is the loss on it after training minus before
    lr_scale: float = Field(default=1.0, gt=0)  # factor for all learning rates: another base may need other ones
    max_hours: float = Field(default=8.0, gt=0, allow_inf_nan=True)
    smoke: dict[str, Any] = {}  # fields of the config of a smoke test's base, with its `model_type`
    methods: list[MethodSpec] = Field(min_length=1)
    blocks: list[Block] = []

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Add the task, columns and metric that the data, a task of GLUE, determine."""
        if not isinstance(values, dict) or not isinstance(values.get("data"), str):
            return values
        try:
            glue = find_glue(values["data"])
        except DataError as error:
            raise ValueError(f"data: {error}") from error
        training = values.get("training", {})
        if isinstance(training, Training):
            training = training.model_dump(exclude_unset=True)
        if glue is None or not isinstance(training, dict):
            return values
        task, *columns = glue.settings().items()
        for given, name, value in [(values, *task), *((training, *column) for column in columns)]:
            if given.get(name, value) != value:
                raise ValueError(f"{name} is {given[name]!r}, but {values['data']} has {value!r}; leave it out")
        metric = values.get("metric") or f"test_{glue.metrics[0]}"
        return {**values, **dict([task]), "metric": metric, "training": {**training, **dict(columns)}}

    @model_validator(mode="after")
    def _is_consistent(self) -> Study:
        keys = [method.key for method in self.methods]
        keys += [f"{candidate.key}@{block.of}" for block in self.blocks for candidate in block.methods]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"methods: duplicate key {min(twice)!r}")
        check_keys(self)
        if self.smoke and not isinstance(self.smoke.get("model_type"), str):
            raise ValueError("smoke: name the architecture of the base as model_type, as in its config.json")
        if self.tuning.seed in self.seeds:
            raise ValueError(
                f"tuning.seed {self.tuning.seed} is one of seeds; learning rates are selected with a separate seed"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: duplicate seed")
        self._check_data_and_metric()
        return self

    def _check_data_and_metric(self) -> None:
        if self.training.epochs is not None and "steps" in self.training.model_fields_set:
            raise ValueError("training.steps and training.epochs both limit a run; give one of them")
        given = [name for name in ("separator", "pad_rows") if getattr(self.training, name) not in (None, False)]
        if given and not self.is_language_model:
            raise ValueError(f"training.{given[0]} is for task causal-lm, not for {self.task}")
        if self.training.text_pair_column is not None and (self.is_language_model or TASKS[self.task].has_images):
            raise ValueError(f"training.text_pair_column is for labelled texts, not for {self.task}")
        if self.training.label_smoothing and TASKS[self.task].is_regression:
            raise ValueError(f"training.label_smoothing is for classes and tokens, not for {self.task}")
        if len(given) > 1:
            raise ValueError("training.separator joins the texts, training.pad_rows keeps rows apart; give one of them")
        if self.eval_data is not None and self.eval_data == self.test_data:
            raise ValueError("eval_data and test_data are the same: learning rates would be chosen on the test data")
        if self.data in (self.eval_data, self.test_data):
            raise ValueError("eval_data or test_data is the training data itself")
        of_task = self._metrics_of_task
        if self.metric in {**OF_CLASSES, **OF_NUMBERS} and self.metric not in of_task:
            usable = " or ".join(["test_loss", *(of_task or ["bleu"])])
            raise ValueError(f"metric {self.metric} is not one of task {self.task}; use {usable}")
        if self.metric not in OF_TEXTS:
            return
        if self.generation is None or not self.is_language_model:
            raise ValueError(f"metric {self.metric} needs task causal-lm and `generation`, whose texts it scores")
        for metric, name in (("meteor", "meteor"), ("bertscore_f1", "bertscore_model")):
            if self.metric == metric and not getattr(self.generation, name):
                raise ValueError(f"metric {metric} needs generation.{name}")

    @property
    def glue(self) -> GlueTask | None:
        """The task of GLUE that the data are, if they are one."""
        return find_glue(self.data)

    @property
    def is_language_model(self) -> bool:
        """Whether the task predicts the tokens of texts."""
        return TASKS[self.task].is_language_model

    @property
    def chosen_metric(self) -> MetricName:
        """`metric`, or the default of the task."""
        return self.metric or next(iter(self._metrics_of_task), "test_loss")

    @property
    def _metrics_of_task(self) -> Mapping[str, Metric]:
        """The metrics of labelled data."""
        return {} if self.is_language_model else OF_NUMBERS if TASKS[self.task].is_regression else OF_CLASSES


def check_keys(study: Any) -> None:
    """Raise ValueError if a Study or ResolvedStudy refers to a method that it does not have."""
    own = [method.key for method in study.methods]
    for field, name in (("reference", study.reference), *(("blocks.of", block.of) for block in study.blocks)):
        if name not in own:
            raise ValueError(f"{field}: no method has the key {name!r}; there are {', '.join(own)}")
    for method in study.methods:
        if method.against == method.key:
            raise ValueError(f"methods: {method.key} is a control against itself; name the controlled method")
        if method.against is not None and method.against not in own:
            raise ValueError(f"methods: {method.key} is a control against {method.against!r}: no method has this key")


def _known_fields(place: tuple[int | str, ...]) -> list[str]:
    """The fields of the part of a study in which an unknown field was found."""
    parents = [part for part in place[:-1] if isinstance(part, str)]
    models: dict[str, type[BaseModel]] = {"training": Training, "tuning": Tuning, "generation": Generation}
    if parents[:1] == ["by_data"]:
        return list(Training.model_fields)
    models |= {"published": Published, "blocks": Block, "methods": Candidate if "blocks" in parents else MethodSpec}
    return list((models[parents[-1]] if parents else Study).model_fields)


def described(error: ValidationError) -> str:
    """The first three errors, such as `training.steps: Input should be a valid integer, got 'many'`."""
    lines = []
    for found in error.errors()[:3]:
        where = ".".join(map(str, found["loc"]))
        what = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            what = unknown("field", str(found["loc"][-1]), _known_fields(found["loc"]))
        is_plain = found["type"] in ("missing", "value_error", "extra_forbidden")
        got = "" if is_plain else f", got {reprlib.repr(found['input'])}"  # a short one
        lines.append(f"{where}: {what}{got}" if where else what)
    return "; ".join(lines)
