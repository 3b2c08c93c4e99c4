"""The settings of a training run: plain data, checked before any work, importable without torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil, isfinite
from typing import Any, NamedTuple

from qpeft import methods
from qpeft.backends.settings import BackendSettings, backend_settings
from qpeft.checks import MOST, check_fields, option
from qpeft.errors import ConfigError, DataError, setting
from qpeft.methods import Method
from qpeft.names import unknown
from qpeft.training.glue import find_glue
from qpeft.training.task_types import TASKS

DTYPES = ("float32", "bfloat16")
SCHEDULES = ("linear", "cosine", "constant")

# panels of the command line's help
_OPTIMIZATION = "Optimization"
_EVALUATION = "Evaluation and checkpoints"
_TEXTS = "Texts"
_COLUMNS = "Columns of the data"

_STEPS = 500
_EVALUATED_BLOCKS = 512
_BEYOND_TENSORS = 2**63  # torch's limit
HIGHEST_SEED = 2**32 - 1  # NumPy's limit


class Intervals(NamedTuple):
    """Steps from one to the next."""

    evaluate: int
    save: int
    log: int


@dataclass(kw_only=True)
class TrainSettings:
    """One fine-tuning run; `check()` validates it."""

    model: str = field(
        metadata={"help": "Base model: a hub id or a folder. On the command line also embedded, the one inside qpeft."}
    )
    data: str = field(
        metadata={
            "help": "Training data: a .txt, .jsonl, .json, .csv, .tsv or .parquet file, a folder of such files, a "
            "built-in corpus (numpy-docs, stdlib-docs), or a hub id. NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT "
            "selects the configuration and the split of a hub id, or of a folder that the datasets library reads. "
            "glue/TASK, such as glue/mrpc, is a task of GLUE with its columns, splits and kind of task; glue/TASK:PATH "
            "is the same in local files. "
            "Images: a folder with one sub-folder for each class, an .npz file with the arrays images and labels, or a "
            "hub id."
        }
    )
    out: str = field(metadata={"help": "Run folder. Run the same command again to resume."})
    method: str = option(
        "qpa",
        "Fine-tuning method, or FILE.py:NAME for your own; on the command line also auto, with a number of parameters.",
        choices=methods.keys(),
    )
    method_settings: dict[str, Any] = option(dict, "Fields of the method's config, such as r or budget.")
    backend_settings: dict[str, Any] = option(
        dict, "Where the circuits run: fields of `qpeft.backends.BackendSettings`, such as shots."
    )
    host: str = option(
        "lora", "The adapter that is generated, if the method supports several.", choices=methods.hosts()
    )
    eval_data: str | None = option(
        None,
        "Validation data, in the same formats. Default: the validation split of the data; without one, every 20th "
        "document is held out (of fewer documents, the last 5 % of the text), or every 20th example of each class.",
    )
    task: str = option(
        "causal-lm",
        "Continue texts, assign texts or images to classes, or predict a number for each text. Classification and "
        "regression also train a new head in full.",
        choices=tuple(TASKS),
    )
    steps: int | None = option(None, f"Optimizer steps. Default: {_STEPS}.", at_least=1, at_most=MOST)
    epochs: float | None = option(
        None, "Passes over the training data, instead of a number of steps.", above=0, at_most=MOST
    )
    lr: float = option(1e-3, "Peak learning rate.", above=0)
    lr_schedule: str = option(
        "linear",
        "Learning rate after the warmup: it decreases to 0, linearly or as a cosine, or stays constant.",
        choices=SCHEDULES,
        panel=_OPTIMIZATION,
    )
    warmup: float = option(
        0.06,
        "Fraction of the steps in which the learning rate increases from 0.",
        panel=_OPTIMIZATION,
        at_least=0,
        below=1,
    )
    batch_size: int = option(
        8, "Blocks of text, or examples, in one forward pass.", panel=_OPTIMIZATION, at_least=1, at_most=MOST
    )
    gradient_accumulation_steps: int = option(
        1, "Forward passes in one optimizer step.", panel=_OPTIMIZATION, at_least=1, at_most=MOST
    )
    seq_len: int | None = option(
        None,
        "Tokens in a block, or the longest text of a classification. Default: the model's context, at most 512.",
        panel=_OPTIMIZATION,
        at_least=2,
        at_most=MOST,
    )
    weight_decay: float = option(0.0, "Weight decay of AdamW.", panel=_OPTIMIZATION, at_least=0)
    max_grad_norm: float = option(
        1.0, "Clip gradients to this norm; 0 turns clipping off.", panel=_OPTIMIZATION, at_least=0
    )
    label_smoothing: float = option(
        0.0,
        "Train towards this probability spread over all tokens or classes, and the rest on the true one. Scores are "
        "not smoothed.",
        panel=_OPTIMIZATION,
        at_least=0,
        below=1,
    )
    seed: int = option(
        0,
        "Seed of the adapter's initialization, the data order and dropout.",
        panel=_OPTIMIZATION,
        at_least=0,
        at_most=HIGHEST_SEED,
    )
    dtype: str = option(
        "float32", "Dtype of the frozen base; the adapter is always float32.", choices=DTYPES, panel=_OPTIMIZATION
    )
    trust_remote_code: bool = option(
        False, "Execute Python code that the base model's folder or repository contains.", panel=_OPTIMIZATION
    )
    gradient_checkpointing: bool = option(
        False, "Save memory: recompute activations in the backward pass.", panel=_OPTIMIZATION
    )
    eval_every: int | None = option(
        None,
        "Steps between evaluations, in addition to the first and the last step. Default: a tenth of the steps.",
        panel=_EVALUATION,
        at_least=1,
        at_most=MOST,
    )
    eval_blocks: int | None = option(
        None,
        "Evaluate on at most this many blocks or examples, spread evenly over the validation data; 0 takes all. "
        "Default: 512 blocks of text, or all examples of a classification.",
        panel=_EVALUATION,
        at_least=0,
        at_most=MOST,
    )
    save_every: int | None = option(
        None,
        "Steps between checkpoints. Default: a tenth of the steps, at most 500; 1 on hardware.",
        panel=_EVALUATION,
        at_least=1,
        at_most=MOST,
    )
    log_every: int | None = option(
        None,
        "Steps between training losses in metrics.jsonl. Default: at most 1,000 losses in a run.",
        panel=_EVALUATION,
        at_least=1,
        at_most=MOST,
    )
    separator: str | None = option(
        None,
        "Join texts with this text, such as an empty one, instead of an end-of-text token, and keep empty texts: "
        "published perplexities are usually measured so.",
        panel=_TEXTS,
    )
    pad_rows: bool = option(
        False,
        "Make every row of text, also an empty one, an example of its own, cut or padded to --seq-len with the "
        "end-of-text token, and score the padding: the protocol of the QPA paper. The rows of a .txt are its lines.",
        panel=_TEXTS,
    )
    text_column: str = option("text", "Column that holds the text.", panel=_COLUMNS)
    text_pair_column: str | None = option(
        None, "Column that holds the second text of a pair, for labelled pairs of texts.", panel=_COLUMNS
    )
    label_column: str = option("label", "Column that holds the class or the number.", panel=_COLUMNS)
    prompt_column: str = option("prompt", "Column that holds the prompt, which is not scored.", panel=_COLUMNS)
    completion_column: str = option("completion", "Column that holds the answer to the prompt.", panel=_COLUMNS)
    report_to: list[str] = option(
        list, "Where the Trainer reports, in addition to metrics.jsonl: tensorboard, trackio, ...", panel=_EVALUATION
    )

    def __post_init__(self) -> None:
        for name, value in self._of_glue().items():
            if getattr(self, name) == getattr(TrainSettings, name):
                setattr(self, name, value)
        if self.steps is None and self.epochs is None:
            self.steps = _STEPS
        if self.eval_blocks is None:
            self.eval_blocks = _EVALUATED_BLOCKS if self.is_language_model else 0

    def check(self) -> None:
        """Raise ConfigError for an unknown name, a value out of range, or options that contradict each other."""
        find_glue(self.data)
        for name, value in self._of_glue().items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{setting(name)} is {getattr(self, name)!r}, but {self.data} has {value!r}; leave it out"
                )
        methods.named(self.method)
        check_fields(self, skip=("method", "host"))
        if self.host not in methods.hosts():
            raise ConfigError(unknown("host", self.host, methods.hosts()))
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"{setting('steps')} and {setting('epochs')} both limit the run; give one of them")
        self._check_texts()
        if self.eval_data == "":  # a shell variable that is not set
            raise ConfigError(f"{setting('eval_data')} is empty; name the validation data, or leave it out")
        for name, value in self.method_settings.items():
            if isinstance(value, float) and not isfinite(value):
                raise ConfigError(f"{setting(name)} must be a finite number, got {value}")
            if isinstance(value, int) and abs(value) >= _BEYOND_TENSORS:
                raise ConfigError(f"{setting(name)} must be smaller than 2^63")
        self._check_backend()
        self._check_host()
        for record in dict.fromkeys((self.record, self.adapter)):
            record.ask("check", self)

    @property
    def is_language_model(self) -> bool:
        """Whether the tokens of texts are predicted; the other tasks are classifications or regressions."""
        return self.task in TASKS and TASKS[self.task].is_language_model

    @property
    def record(self) -> Method:
        """The record of the method. Raises ConfigError for an unknown one."""
        return methods.named(self.method)

    @property
    def adapter(self) -> Method:
        """The record of the adapter that is trained or generated: the host's if a generator produces its tensors."""
        return self.record if self.record.generator is None else methods.get(self.host)

    @property
    def attaches(self) -> bool:
        """Whether `qpeft.attach` adds the generator, because the method's own config cannot generate the host."""
        return self.record.generator is not None and self.host not in self.record.own_hosts

    @property
    def backend(self) -> BackendSettings:
        """`backend_settings` with their defaults."""
        return backend_settings(self.backend_settings)

    @property
    def n_steps(self) -> int:
        """Optimizer steps. A run with `epochs` has them once its data are read: `with_steps`."""
        if self.steps is None:
            raise ConfigError("the steps of a run with epochs depend on its data; they are not read yet")
        return self.steps

    def with_steps(self, n_examples: int) -> TrainSettings:
        """The settings with steps for `epochs` passes over `n_examples` blocks or examples, as the Trainer counts."""
        if self.epochs is None:
            return self
        n_batches = ceil(n_examples / self.batch_size)
        steps = ceil(self.epochs * ceil(n_batches / self.gradient_accumulation_steps))
        return replace(self, steps=steps, epochs=None)

    def intervals(self) -> Intervals:
        """The given intervals, or defaults that depend on the number of steps."""
        return Intervals(
            evaluate=self.eval_every or max(1, self.n_steps // 10),
            save=self.save_every or max(1, min(500, self.n_steps // 10)),
            log=self.log_every or -(-self.n_steps // 1000),
        )

    def _of_glue(self) -> dict[str, Any]:
        """The fields that a task of GLUE determines."""
        if isinstance(self.data, str):  # in a damaged file it may be anything
            with suppress(DataError):  # an unknown one, which `check` reports
                if (glue := find_glue(self.data)) is not None:
                    return glue.settings()
        return {}

    def _check_texts(self) -> None:
        if self.text_pair_column is not None and (self.is_language_model or TASKS[self.task].has_images):
            raise ConfigError(f"{setting('text_pair_column')} is for labelled texts, not for {self.task}")
        if self.label_smoothing and TASKS[self.task].is_regression:
            raise ConfigError(f"{setting('label_smoothing')} is for classes and tokens, not for {self.task}")
        given = [name for name in ("separator", "pad_rows") if getattr(self, name) not in (None, False)]
        if given and not self.is_language_model:
            raise ConfigError(f"{setting(given[0])} is for task causal-lm, not for {self.task}; leave it out")
        if len(given) > 1:
            raise ConfigError(
                f"{setting('separator')} joins the texts, {setting('pad_rows')} keeps every row apart; give one of them"
            )

    def _check_host(self) -> None:
        if self.host != TrainSettings.host and self.record.generator is None:
            owners = " or ".join(record.key for record in methods.records() if record.generator is not None)
            raise ConfigError(f"host {self.host} is for method {owners}; method {self.method} has no host")

    def _check_backend(self) -> None:
        if not self.backend.is_usual and not self.record.takes_backend:
            raise ConfigError(
                f"method {self.method} has no circuit that can run on a backend; leave out "
                f"{', '.join(self.backend_settings)}"
            )
