"""The one description of a training run: the command line, the documentation and a study read each
field from it.

Pydantic checks the types. The fields are `option` fields, like the settings of methods, so that one
mechanism makes the options of all commands. It is importable without torch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from functools import partial
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from qpeft import methods
from qpeft.backends import BackendSettings
from qpeft.checks import MOST, check_fields, option, unknown
from qpeft.errors import ConfigError
from qpeft.methods import Method
from qpeft_lab.data.glue import GlueTask, find_glue
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.files import read_yaml
from qpeft_lab.method_records import check_run

_Settings = TypeVar("_Settings", bound="SharedSettings")

# fields by panels of the command line's help
_optimization = partial(option, panel="Optimization")
_EVALUATION = "Evaluation and checkpoints"
_evaluation = partial(option, panel=_EVALUATION)
_texts = partial(option, panel="Texts")
_COLUMNS = "Columns of the data"
_column = partial(option, panel=_COLUMNS)

_OF_LANGUAGE_MODELS = (
    "pad_rows",
    "chat_template",
    "load_in_4bit",
    "prompt_column",
    "completion_column",
)
_COUNT: Any = {"at_least": 1, "at_most": MOST}
_STEPS = 500
# of a study that does not set eval_blocks
EVALUATED_BLOCKS = 512
# fields whose defaults depend on the amount of data: `RunSettings.with_data`
BY_DATA = ("steps", "epochs", "eval_every", "eval_blocks")

# Evaluations of a run that does not set their number: a fifth of its time, where a forward pass takes
# about 0.45 of a training step (of a frozen base; 0.49 in one run of SmolLM2).
FORWARD_SHARE = 0.45
_EVALUATION_SHARE = 0.2
_EVALUATIONS = (2, 11)
_BLOCKS = (8, EVALUATED_BLOCKS)
_USEFUL_BLOCKS = 64  # rather fewer evaluations than smaller ones
_STRICT = ConfigDict(strict=True, extra="forbid")
HIGHEST_SEED = 2**32 - 1  # NumPy's limit


class Evaluations(NamedTuple):
    """The evaluations of a run."""

    number: int  # with that before the first step
    blocks: int  # or examples in each
    share: float  # of the time of the run, estimated


@dataclass(kw_only=True, config=_STRICT)
class SharedSettings:
    """The part of a run that all methods of a study share: base, data and training. `check()`
    validates the values.

    Raises pydantic's ValidationError for an unknown field, a value of another type, and an unknown
    task of GLUE.
    """

    model: str = option(
        MISSING,
        "Base model: a hub id, a folder, or a GGUF file. On the command line also embedded, the one"
        " inside qpeft, and smollm2 or minilm, which qpeft base builds.",
    )
    data: str = option(
        MISSING,
        "Training data: a .txt, .jsonl, .json, .csv, .tsv or .parquet file, a folder of such files"
        " or of one sub-folder of images for each class, a .parquet file with the columns image and"
        " label, a built-in corpus (numpy-docs, stdlib-docs), or a hub id; NAME:CONFIG,"
        " NAME:CONFIG:SPLIT or NAME::SPLIT selects its part. glue/TASK, such as glue/mrpc, is a"
        " task of GLUE with its columns and splits; glue/TASK:PATH has local files.",
    )
    eval_data: str | None = option(
        None,
        "Validation data, in the same formats. Default: the validation split of the data; without"
        " one, every 20th document is held out (of fewer documents, the last 5 % of the text), or"
        " every 20th example of each class.",
    )
    task: str = option(
        "causal-lm",
        "Continue texts, assign texts or images to classes, or predict a number for each text."
        " Classification and regression also train a new head in full.",
        choices=tuple(TASKS),
    )
    steps: int | None = option(None, f"Optimizer steps. Default: {_STEPS}.", **_COUNT)
    epochs: float | None = option(
        None, "Passes over the training data, instead of a number of steps.", above=0, at_most=MOST
    )
    lr_schedule: str = _optimization(
        "linear",
        "Learning rate after the warmup: it decreases to 0, linearly or as a cosine, or stays"
        " constant.",
        choices=("linear", "cosine", "constant"),
    )
    warmup: float = _optimization(
        0.06,
        "Fraction of the steps in which the learning rate increases from 0.",
        at_least=0,
        below=1,
    )
    batch_size: int = option(8, "Blocks of text, or examples, in one forward pass.", **_COUNT)
    gradient_accumulation_steps: int = _optimization(
        1, "Forward passes in one optimizer step.", **_COUNT
    )
    seq_len: int | None = option(
        None,
        "Tokens in a block, or the longest text of a classification. Default: the model's context,"
        " at most 512.",
        at_least=2,
        at_most=MOST,
    )
    weight_decay: float = _optimization(0.0, "Weight decay of AdamW.", at_least=0)
    max_grad_norm: float = _optimization(
        1.0, "Clip gradients to this norm; 0 turns clipping off.", at_least=0
    )
    label_smoothing: float = _optimization(
        0.0,
        "Train towards this probability spread over all tokens or classes, and the rest on the true"
        " one. Scores are not smoothed.",
        at_least=0,
        below=1,
    )
    dtype: str = _optimization(
        "float32",
        "Dtype of the frozen base; the adapter is always float32.",
        choices=("float32", "bfloat16"),
    )
    load_in_4bit: bool = _optimization(
        False, "Quantize the frozen base to 4 bits (NF4) with bitsandbytes, as QLoRA does."
    )
    gradient_checkpointing: bool = _optimization(
        False, "Save memory: recompute activations in the backward pass."
    )
    eval_every: int | None = _evaluation(
        None,
        "Steps between evaluations, in addition to the first and the last step. Default: at least a"
        " tenth of the steps, and as many as a fifth of the time allows.",
        **_COUNT,
    )
    eval_blocks: int | None = _evaluation(
        None,
        "Evaluate on at most this many blocks or examples, spread evenly over the validation data;"
        " 0 takes all. Default: 8 to 512 blocks of text, for at most a fifth of the time; 512 in a"
        " study; all examples of a classification, and in evaluate.",
        at_least=0,
        at_most=MOST,
    )
    save_every: int | None = _evaluation(
        None,
        "Steps between checkpoints. Default: a tenth of the steps, at most 500; 1 on hardware.",
        **_COUNT,
    )
    pad_rows: bool = _texts(
        False,
        "Make every row of text, also an empty one, an example of its own, cut or padded to"
        " --seq-len with the end-of-text token, and score the padding: the protocol of the QPA"
        " paper. The rows of a .txt are its lines.",
    )
    chat_template: str | None = _texts(
        None,
        "Jinja template for data with messages: chatml, or a file. Default: the one of the"
        " tokenizer.",
    )
    text_column: str = _column("text", "Column that holds the text.")
    text_pair_column: str | None = _column(
        None, "Column that holds the second text of a pair, for labelled pairs of texts."
    )
    label_column: str = _column("label", "Column that holds the class or the number.")
    prompt_column: str = _column("prompt", "Column that holds the prompt, which is not scored.")
    completion_column: str = _column("completion", "Column that holds the answer to the prompt.")
    report_to: list[str] = option(
        list,
        "Where the Trainer reports, in addition to metrics.jsonl: tensorboard, trackio, ...",
        panel=_EVALUATION,
    )

    def __post_init__(self) -> None:
        for name, value in self._of_glue.items():
            if getattr(self, name) == getattr(SharedSettings, name):
                setattr(self, name, value)
        if self.steps is None and self.epochs is None:
            self.steps = _STEPS
        if self.eval_blocks is None and not self.is_language_model:
            self.eval_blocks = 0

    def check(self) -> None:
        """Raise ConfigError for an unknown name, a value out of range, or options that contradict
        each other.
        """
        for name, value in self._of_glue.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but {self.data} has {value!r}; leave"
                    " it out"
                )
        check_fields(self, skip=("method", "host"))
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs both limit the run; give one of them")
        kind = TASKS[self.task]
        has_labelled_texts = not kind.is_language_model and not kind.has_images
        applies = {
            **dict.fromkeys(_OF_LANGUAGE_MODELS, kind.is_language_model),
            "text_column": not kind.has_images,
            "text_pair_column": has_labelled_texts,
            "label_column": not kind.is_language_model,
            "label_smoothing": not kind.is_regression,
        }
        for name, does_apply in applies.items():
            if not does_apply and getattr(self, name) != getattr(SharedSettings, name):
                raise ConfigError(f"{name} does not apply to task {self.task}; leave it out")
        read_together = (
            ("prompt_column", "completion_column")
            if kind.is_language_model
            else ("text_column", "text_pair_column", "label_column")
        )
        for name, other in combinations(read_together, 2):
            if getattr(self, name) == getattr(self, other):
                raise ConfigError(
                    f"{name} and {other} are both {getattr(self, name)!r}; they are"
                    " two columns of a row"
                )
        if self.chat_template is not None:
            from qpeft_lab.data.text import read_template

            read_template(self.chat_template)
        if self.report_to:
            from transformers.integrations.integration_utils import (
                get_available_reporting_integrations as available,
            )

            if missing := [name for name in self.report_to if name not in available()]:
                raise ConfigError(
                    f"{unknown('place to report to', missing[0], available())}; install its package"
                )

    @property
    def is_language_model(self) -> bool:
        """Whether the tokens of texts are predicted; the other tasks are classifications or
        regressions.
        """
        return self.task in TASKS and TASKS[self.task].is_language_model

    @property
    def glue(self) -> GlueTask | None:
        """The task of GLUE that the data are, if they are one."""
        return find_glue(self.data)

    @property
    def _of_glue(self) -> dict[str, Any]:
        """The fields that this task determines."""
        return {} if self.glue is None else self.glue.settings()

    def with_method(self, **own: Any) -> RunSettings:
        """The run with these fields of `RunSettings`, such as `method`."""
        values = {**vars(self), "out": "-", **own}
        return RunSettings(**values)


@dataclass(kw_only=True, config=_STRICT)
class RunSettings(SharedSettings):
    """One fine-tuning run, with its own fields and those that a study shares.

    Raises as `SharedSettings`: pydantic's ValidationError for an unknown field or a value of another
    type; `check()` raises ConfigError for values that are out of range or contradict each other.
    """

    out: str = option(MISSING, "Run folder. Run the same command again to resume.")
    method: str = option(
        "qpa",
        "Fine-tuning method, or FILE.py:NAME for your own; on the command line also auto, with a"
        " number of parameters.",
        choices=methods.keys(),
    )
    method_settings: dict[str, Any] = option(
        dict, "Fields of the method's config, such as r or budget."
    )
    backend_settings: dict[str, Any] = option(
        dict, "Where the circuits run: fields of `qpeft.backends.BackendSettings`, such as shots."
    )
    host: str = option(
        "lora",
        "The adapter that is generated, if the method supports several.",
        choices=methods.hosts(),
    )
    lr: float | None = option(
        None,
        "Peak learning rate. Default: the one that was measured for the method on bases of about"
        " this size; the run prints it with its source.",
        above=0,
    )
    seed: int = _optimization(
        0,
        "Seed of the adapter's initialization, the data order and dropout.",
        at_least=0,
        at_most=HIGHEST_SEED,
    )
    trust_remote_code: bool = _optimization(
        False, "Execute Python code that the base model's folder or repository contains."
    )

    def check(self) -> None:
        """Raise ConfigError as `SharedSettings.check`, and for what does not fit the method."""
        super().check()
        records = dict.fromkeys((self.record, self.adapter))
        if self.host != RunSettings.host and self.record.generator is None:
            owners = " or ".join(
                record.key for record in methods.records() if record.generator is not None
            )
            raise ConfigError(
                f"host {self.host} is for method {owners}; method {self.method} has no host"
            )
        if self.backend != BackendSettings() and not self.record.takes_backend:
            raise ConfigError(
                f"method {self.method} has no circuit that can run on a backend; leave out "
                f"{', '.join(self.backend_settings)}"
            )
        for record in records:
            check_run(record, self)

    @property
    def record(self) -> Method:
        """The record of the method. Raises ConfigError for an unknown one."""
        return methods.get(self.method)

    @property
    def adapter(self) -> Method:
        """The record of the adapter that is trained or generated: the host's if a generator
        produces its tensors.

        Raises ConfigError for an unknown one.
        """
        if self.host not in methods.hosts():
            raise ConfigError(unknown("host", self.host, methods.hosts()))
        return self.record if self.record.generator is None else methods.get(self.host)

    @property
    def attaches(self) -> bool:
        """Whether `qpeft.attach` adds the generator, because the method's own config cannot
        generate the host.
        """
        return self.record.generator is not None and self.host not in self.record.own_hosts

    @property
    def backend(self) -> BackendSettings:
        """`backend_settings` with their defaults. Raises ConfigError for an unknown field or a
        value out of range.
        """
        known = [f.name for f in fields(BackendSettings)]
        for name in self.backend_settings:
            if name not in known:
                raise ConfigError(unknown("backend setting", name, known))
        return BackendSettings(**self.backend_settings)

    @property
    def n_steps(self) -> int:
        """Optimizer steps. A run with `epochs` has them once its data are read: `with_steps`.

        Raises ConfigError before that.
        """
        if self.steps is None:
            raise ConfigError(
                "the steps of a run with epochs depend on its data; they are not read yet"
            )
        return self.steps

    def with_steps(self, n_examples: int) -> RunSettings:
        """The settings with steps for `epochs` passes over `n_examples` blocks or examples, as the
        Trainer counts.
        """
        if self.epochs is None:
            return self
        n_batches = ceil(n_examples / self.batch_size)
        steps = ceil(self.epochs * ceil(n_batches / self.gradient_accumulation_steps))
        return replace(self, steps=steps, epochs=None)

    def with_data(self, n_train: int, n_evaluation: int) -> RunSettings:
        """The settings of a run with so many examples to train on and to evaluate: `BY_DATA` are
        set.
        """
        run = self.with_steps(n_train)
        chosen = run.evaluations(n_evaluation)
        every = run.eval_every or ceil(run.n_steps / (chosen.number - 1))
        blocks = chosen.blocks if run.eval_blocks is None else run.eval_blocks
        return replace(run, eval_every=every, eval_blocks=blocks)

    def evaluations(self, n_available: int) -> Evaluations:
        """How often, and on how many of `n_available` blocks or examples, a run with steps is
        evaluated.

        Where nothing is set, they take at most a fifth of the time, if 2 evaluations on 8 blocks
        do not take more.
        """
        trained = self.n_steps * self.batch_size * self.gradient_accumulation_steps
        # e * forward <= share * (e * forward + trained), for e blocks in all evaluations
        affordable = trained * _EVALUATION_SHARE / (1 - _EVALUATION_SHARE) / FORWARD_SHARE
        asked = _USEFUL_BLOCKS if self.eval_blocks is None else self.eval_blocks or n_available
        if self.eval_every is not None:
            number = 1 + ceil(self.n_steps / self.eval_every)
        else:
            number = _within(affordable / min(asked, n_available), _EVALUATIONS)
        blocks = _within(affordable / number, _BLOCKS) if self.eval_blocks is None else asked
        blocks = min(blocks, n_available)
        scored = number * blocks * FORWARD_SHARE
        return Evaluations(number, blocks, scored / (scored + trained))

    def intervals(self) -> tuple[int, int, int]:
        """Steps between evaluations, checkpoints, and training losses in metrics.jsonl: at most
        1,000 in a run.
        """
        tenth = max(1, self.n_steps // 10)
        return (
            self.eval_every or tenth,
            self.save_every or min(500, tenth),
            ceil(self.n_steps / 1000),
        )


def _within(value: float, limits: tuple[int, int]) -> int:
    """`value` rounded down, but within the limits."""
    return max(limits[0], min(limits[1], int(value)))


NEEDED = tuple(
    f.name for f in fields(RunSettings) if f.default is MISSING and f.default_factory is MISSING
)
COLUMNS = tuple(f.name for f in fields(SharedSettings) if f.metadata.get("panel") == _COLUMNS)


def settings_from(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """The settings with these fields, of a file or options. Raises ConfigError, with the name of
    the field at fault.
    """
    known, of_run = ([f.name for f in fields(owner)] for owner in (kind, RunSettings))
    for name in values:
        if name not in known:
            shared = (
                f"{name} is not shared by the runs of a study; it is a field of its methods, or"
                " follows from them"
            )
            raise ConfigError(shared if name in of_run else unknown("field", name, known))
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(described(error)) from error


def described(error: ValueError) -> str:
    """The first error of fields, such as `steps: Input should be a valid integer, got 'many'`."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    has_value = first["type"] not in ("missing", "value_error")
    got = f", got {reprlib.repr(first['input'])}" if has_value else ""  # shortened
    name = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ") + got
    return ": ".join(filter(None, (name, message)))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The fields of a run in a YAML file: `RunSettings(**read_settings("run.yaml"))`.

    Raises ConfigError if the file cannot be read, or for an unknown field or a value that is not
    allowed.
    """
    path = Path(path).expanduser()
    values = read_yaml(path, "`model: gpt2`")
    try:
        made = settings_from(RunSettings, {**dict.fromkeys(NEEDED, "-"), **values})
        check_fields(made, skip=("method", "host"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return {name: getattr(made, name) for name in values}
