"""The common part of labelled texts and images: labels, split, head, score."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qpeft.core import base_model as base
from qpeft.errors import DataError
from qpeft.training.blocks import spread
from qpeft.training.glue import find_glue
from qpeft.training.metrics import ClassificationScore, Watch, classification_loss, evaluate_classifier
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import warn_of_shared
from qpeft.training.tasks.classifier import check_can_classify, class_names, is_classifier, load_classifier
from qpeft.training.tasks.labelled_data import Labelled, collect_labels, hold_out, label_name
from qpeft.training.tasks.record import TaskRecord
from qpeft.training.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Example = tuple[Any, Any]  # content, index of its class


class Classification(Task):
    """Examples with their classes. A subclass defines what an example is, and how a batch is made."""

    score_class = ClassificationScore
    name: ClassVar[str]
    pad: int | None = None  # the padding token of texts
    labels: tuple[str, ...]  # names of the classes; the index of a class is its position

    def __init__(self, settings: TrainSettings, reserved: int = 0, labels: Sequence[str] | None = None):
        self.settings = settings
        self.config = base.load_config(settings.model, settings.trust_remote_code)
        check_can_classify(self.config, self.name)
        self._load_processor(reserved)
        if labels is not None:
            self.labels = tuple(labels)
            self.train, self.evaluation = [], self._examples(self.read(settings.data, "validation"), settings.data)
            return
        train = self.read(settings.data, "train")
        validation = settings.eval_data or (settings.data if self.has_validation(settings.data) else None)
        if validation:
            evaluation = self.read(validation, "validation")
        else:
            train, evaluation = self._hold_out(train)
        self.labels = self._labels_of(train)
        contents = ([self._digest(content) for content, _ in part] for part in (train, evaluation))
        warn_of_shared("evaluation examples", *contents)
        self.train = self._examples(train, settings.data)
        self.evaluation = spread(settings.eval_blocks or 0, self._examples(evaluation, validation or settings.data))

    @abstractmethod
    def _load_processor(self, reserved: int) -> None:
        """Load the tokenizer or image processor."""

    @abstractmethod
    def read(self, source: str, split: str) -> list[Labelled]:
        """All examples of a split of a source, checked."""

    @abstractmethod
    def has_validation(self, source: str) -> bool:
        """Whether a source has a validation split."""

    @abstractmethod
    def content_bytes(self, content: Any) -> bytes:
        """The bytes of an example that are hashed."""

    def label(self, value: Any, where: str) -> Any:
        """A label as the task uses it. Raises DataError, which names `where`, for an unusable one."""
        return label_name(value, where)

    def record(self) -> TaskRecord:
        """The content of task.json."""
        is_other = is_classifier(self.config) and len(class_names(self.config)) != len(self.labels)
        return TaskRecord(self.name, self.labels, self.pad, ignore_mismatched_sizes=is_other)

    def loss(self, label_smoothing: float) -> Callable[..., Tensor]:
        return partial(classification_loss, label_smoothing=label_smoothing)

    def sha256(self) -> str:
        sha = hashlib.sha256("\0".join(self.labels).encode())
        for content, label in (*self.train, *self.evaluation):
            sha.update(self._digest(content) + self._label_bytes(label))
        return sha.hexdigest()

    def load_base(self) -> PreTrainedModel:
        s = self.settings
        loaded = load_classifier(s.model, s.dtype, self.record(), s.seed, s.trust_remote_code)
        self.head, self.has_new_head = loaded.trained, loaded.has_new_head
        return loaded.model

    def score(self, model: Any, examples: Sequence[Example] | None = None, watch: Watch = iter) -> Any:
        scored = self.evaluation if examples is None else examples
        return self._evaluate(model, scored, self.collate, self.settings.batch_size, watch)

    _evaluate: ClassVar[Callable[..., Any]] = staticmethod(evaluate_classifier)

    def _hold_out(self, rows: list[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
        return hold_out(rows, self.settings.data)

    def _labels_of(self, train: Sequence[Labelled]) -> tuple[str, ...]:
        if (glue := find_glue(self.settings.data)) is not None:
            return glue.classes
        return collect_labels((name for _, name in train), self.settings.data, class_names(self.config))

    def _label_bytes(self, label: Any) -> bytes:
        return label.to_bytes(8, "little")

    def probe(self) -> Mapping[str, Tensor]:
        return {name: part for name, part in self.collate(self.evaluation[:2]).items() if name != "labels"}

    def describe(self, folder: Path) -> None:
        self.record().write(folder)

    def _digest(self, content: Any) -> bytes:
        return hashlib.sha256(self.content_bytes(content)).digest()

    def _examples(self, rows: Sequence[Labelled], source: str) -> list[Example]:
        index = {name: i for i, name in enumerate(self.labels)}
        for _, name in rows:
            if name not in index:
                known = ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")
                raise DataError(
                    f"{source} has the label {name!r}, not one of the {len(self.labels)} trained classes ({known}); "
                    "remove its examples, or train on some of them"
                )
        return [(content, index[name]) for content, name in rows]
