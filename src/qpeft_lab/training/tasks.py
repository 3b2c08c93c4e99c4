"""The tasks that a run can train: each has its data, base model, batches and score."""

from __future__ import annotations

import hashlib
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
)

from qpeft.errors import ConfigError, DataError, InputError
from qpeft.files import write_text
from qpeft_lab import base_model as base
from qpeft_lab.base_files import TEMPLATE
from qpeft_lab.data import text
from qpeft_lab.data.glue import find_glue
from qpeft_lab.data.images import image_bytes, load_images, open_image
from qpeft_lab.data.labelled import (
    Labelled,
    collect_labels,
    hold_out,
    label_name,
    label_number,
    load_labelled_texts,
)
from qpeft_lab.data.sources import has_validation_split, load_examples, spread
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.data.text import IGNORED, Tokens
from qpeft_lab.progress import Progress
from qpeft_lab.settings import RunSettings
from qpeft_lab.training import classifier, score
from qpeft_lab.training.classifier import TaskRecord, class_names
from qpeft_lab.training.hidden_states import keep_hidden_states
from qpeft_lab.training.score import Score

Example = tuple[Any, Any]  # content, index of its class or number


class Task(ABC):
    """A task with the data of one run, which is read and checked in the constructor.

    The constructor raises InputError for unusable data or an unusable base; weights are only read
    by `load_base`.

    Args:
        settings: The run. The attribute has the numbers of `BY_DATA` in place of defaults.
        reserved: Positions of the model's context that the adapter occupies.
        labels: The outputs of a trained adapter: its classes, one name for a regression; empty for
            a language model, and for the outputs of the base's own head. All of the data is then
            evaluated and none trained on.
    """

    train: Sequence[Any]  # arguments of `collate`
    evaluation: Sequence[Any]
    processor: Any  # tokenizer or image processor
    # modules of the loaded base that are trained in full, in addition to the adapter
    head: Sequence[str] = ()
    has_new_head: bool = False  # set by load_base

    def __init__(
        self, settings: RunSettings, reserved: int = 0, labels: Sequence[str] | None = None
    ):
        self.settings = settings
        self.kind = TASKS[settings.task]
        self.config: PretrainedConfig = base.load_config(settings.model, settings.trust_remote_code)
        if self.kind.is_language_model:
            base.check_is_causal(self.config, settings.model)
        else:
            classifier.check_can_classify(self.config, settings.task)
        self.processor = load_processor(settings.model, settings.task, settings.trust_remote_code)
        self._read(reserved, labels)
        if labels is None:
            self.settings = settings.with_data(len(self.train), len(self.evaluation))
            self.evaluation = spread(self.settings.eval_blocks or 0, list(self.evaluation))

    @abstractmethod
    def _read(self, reserved: int, labels: Sequence[str] | None) -> None:
        """Set `train` and `evaluation`."""

    @abstractmethod
    def loss(self, label_smoothing: float) -> Callable[..., Tensor] | None:
        """The loss function for the Trainer; None: the loss of the model."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of the training and evaluation data, as the model receives it, in order."""

    @abstractmethod
    def load_base(self) -> PreTrainedModel:
        """The base model; a head that it lacks is initialized from the seed of the run."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The arguments of the model's forward, including `labels`."""

    @abstractmethod
    def score(
        self, model: Any, examples: Sequence[Any] | None = None, progress: Progress | None = None
    ) -> Score:
        """The score of `model` on `examples`, by default the evaluation data."""

    def record(self) -> TaskRecord | None:
        """The content of task.json; None for a language model."""
        return None

    @abstractmethod
    def describe(self, folder: Path) -> None:
        """Add to an adapter folder the information about the task that loading it requires."""


class CausalLM(Task):
    """Each token of a block of texts, or of the answer to a prompt, is predicted from those before
    it.
    """

    hidden_states: Path | None = None  # where runs of one base keep those below what is adapted

    def _read(self, reserved: int, labels: Sequence[str] | None) -> None:
        s = self.settings
        self.tokenizer = self.processor
        if s.chat_template is not None:
            self.tokenizer.chat_template = text.read_template(s.chat_template)
        self.seq_len = base.block_length(s.seq_len, self.config, reserved)
        if labels is None:
            self.train, self.evaluation = text.load_blocks(s, self.seq_len, self.tokenizer)
        else:
            rows = load_examples(s.data, "validation", s)
            text.note_unused(rows, s, self.tokenizer)
            self.train = []
            self.evaluation = text.cut(rows, self.seq_len, self.tokenizer, s.data, s.pad_rows)
            if not self.evaluation:
                raise DataError(f"{s.data} has no token to score within seq_len={self.seq_len}")
        base.check_vocabulary((block.ids for block in (*self.train, *self.evaluation)), self.config)

    def loss(self, label_smoothing: float) -> Callable[..., Tensor] | None:
        return (
            partial(score.mean_nats, label_smoothing=label_smoothing, of_tokens=True)
            if label_smoothing
            else None
        )

    def sha256(self) -> str:
        sha = hashlib.sha256()
        for block in (*self.train, *self.evaluation):
            for part in (np.array([len(block.ids)]), block.ids, block.scored):
                sha.update(part.tobytes())
        return sha.hexdigest()

    def load_base(self) -> PreTrainedModel:
        s = self.settings
        model = base.load_model(s.model, s.dtype, s.trust_remote_code, s.load_in_4bit)
        if self.hidden_states is not None:
            keep_hidden_states(model, self.hidden_states)
        return model

    collate = staticmethod(text.collate)  # type: ignore[assignment]

    def score(
        self,
        model: Any,
        examples: Sequence[Tokens] | None = None,
        progress: Progress | None = None,
    ) -> Score:
        blocks = self.evaluation if examples is None else examples
        return score.evaluate_language_model(model, blocks, self.settings.batch_size, progress)

    def describe(self, folder: Path) -> None:
        if self.settings.chat_template is not None:
            write_text(folder / TEMPLATE, str(self.tokenizer.chat_template))


class Classification(Task):
    """Examples with their classes. A subclass defines what an example is, and how a batch is made."""

    pad: int | None = None  # the padding token of texts
    labels: tuple[str, ...]  # names of the classes; the index of a class is its position

    def _read(self, reserved: int, labels: Sequence[str] | None) -> None:
        s = self.settings
        if labels is not None:
            self.labels = tuple(labels) or self._own_labels()
            self.train = []
            self.evaluation = self._examples(self.read(s.data, "validation"), s.data)
            return
        train = self.read(s.data, "train")
        validation = s.eval_data or (
            s.data if has_validation_split(s.data, self.kind.has_images) else None
        )
        if validation:
            evaluation = self.read(validation, "validation")
        else:
            train, evaluation = hold_out(train, s.data, has_classes=not self.kind.is_regression)
        self.labels = self._labels_of(train)
        self.train = self._examples(train, s.data)
        self.evaluation = self._examples(evaluation, validation or s.data)

    @abstractmethod
    def read(self, source: str, split: str) -> list[Labelled]:
        """All examples of a split of a source, checked."""

    @abstractmethod
    def bytes_of(self, content: Any) -> bytes:
        """The content of an example, for the hash of the data."""

    def record(self) -> TaskRecord:
        is_other = classifier.is_classifier(self.config) and len(class_names(self.config)) != len(
            self.labels
        )
        return TaskRecord(
            self.settings.task, self.labels, self.pad, ignore_mismatched_sizes=is_other
        )

    def loss(self, label_smoothing: float) -> Callable[..., Tensor]:
        if self.kind.is_regression:
            return score.regression_loss
        return partial(score.mean_nats, label_smoothing=label_smoothing)

    def sha256(self) -> str:
        sha = hashlib.sha256("\0".join(self.labels).encode())
        for content, label in (*self.train, *self.evaluation):
            sha.update(hashlib.sha256(self.bytes_of(content)).digest() + struct.pack("<d", label))
        return sha.hexdigest()

    def load_base(self) -> PreTrainedModel:
        s = self.settings
        loaded = classifier.load_classifier(
            s.model, s.dtype, self.record(), s.seed, s.trust_remote_code
        )
        model, self.head, self.has_new_head = loaded
        own = class_names(self.config)
        # of a head for another number of classes it is plain that it cannot be kept; of a trained
        # adapter the head is in its folder
        if (
            self.train
            and self.has_new_head
            and classifier.is_classifier(self.config)
            and len(own) == len(self.labels)
        ):
            kept, new = (
                ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                for names in (own, self.labels)
            )
            warnings.warn(
                f"the base's head is for the classes {kept}, the data has {new}: a new head replaces"
                " it, initialized from the seed; to continue from the base's head, give the classes"
                " of the data its names",
                stacklevel=2,
            )
        return model

    def score(
        self,
        model: Any,
        examples: Sequence[Example] | None = None,
        progress: Progress | None = None,
    ) -> Score:
        scored = self.evaluation if examples is None else examples
        return score.evaluate_examples(
            model,
            scored,
            self.collate,
            self.settings.batch_size,
            self.kind.is_regression,
            progress,
        )

    def _own_labels(self) -> tuple[str, ...]:
        names = class_names(self.config)
        if not classifier.is_classifier(self.config) or (
            self.kind.is_regression and len(names) != 1
        ):
            task = self.settings.task
            raise InputError(
                f"{self.settings.model} has no head for {task}; pass --adapter with a trained run"
            )
        return names

    def _labels_of(self, train: Sequence[Labelled]) -> tuple[str, ...]:
        if self.kind.is_regression:
            names = class_names(self.config)
            # LABEL_0 is transformers' name of a single output
            return names if len(names) == 1 else ("LABEL_0",)
        if (glue := find_glue(self.settings.data)) is not None:
            return glue.classes
        return collect_labels(
            (name for _, name in train), self.settings.data, class_names(self.config)
        )

    def describe(self, folder: Path) -> None:
        self.record().write(folder)

    def _examples(self, rows: Sequence[Labelled], source: str) -> list[Example]:
        if self.kind.is_regression:  # the Trainer does not count labels of -100
            return [
                (content, number if number != IGNORED else IGNORED + 1e-5)
                for content, number in rows
            ]
        index = {name: i for i, name in enumerate(self.labels)}
        for _, name in rows:
            if name not in index:
                known = ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")
                raise DataError(
                    f"{source} has the label {name!r}, not one of the {len(self.labels)} trained"
                    f" classes ({known}); remove its examples, or train on some of them"
                )
        return [(content, index[name]) for content, name in rows]


class TextClassification(Classification):
    """Texts or pairs of texts, each truncated to `seq_len` tokens and padded to the longest of its
    batch.

    A content has input_ids (T,), and of a pair token_type_ids (T,) if the model distinguishes two
    texts by them. A regression has one output, which is trained on the squared error.
    """

    def _read(self, reserved: int, labels: Sequence[str] | None) -> None:
        seq_len = self.settings.seq_len
        self.tokenizer = self.processor
        self.tokenizer.pad_token_id = self.pad = _pad_token(self.tokenizer, self.config)
        self.tokenizer.padding_side = "right"
        room = self.tokenizer.model_max_length - reserved
        if seq_len is not None and seq_len > room:
            raise ConfigError(
                f"seq_len={seq_len} is longer than the {room} tokens that the tokenizer allows"
            )
        self._length = min(base.block_length(seq_len, self.config, reserved), room)
        super()._read(reserved, labels)
        base.check_vocabulary(
            (content["input_ids"] for content, _ in (*self.train, *self.evaluation)), self.config
        )

    def read(self, source: str, split: str) -> list[Labelled]:
        label = label_number if self.kind.is_regression else label_name
        texts, labels = zip(*load_labelled_texts(source, split, self.settings, label), strict=True)
        return list(zip(self._encode(texts), labels, strict=True))

    def bytes_of(self, content: Any) -> bytes:
        return b"".join(part.tobytes() for part in content.values())

    def _encode(self, texts: Sequence[Sequence[str]]) -> list[dict[str, np.ndarray]]:
        """Each text, or pair of texts, truncated: of a pair the longer text first, as transformers
        does.
        """
        first, *second = (list(part) for part in zip(*texts, strict=True))
        options: dict[str, Any] = {"truncation": True, "max_length": self._length, "verbose": False}
        encoded = self.tokenizer(first, text_pair=second[0] if second else None, **options)
        has_types = second and getattr(self.config.get_text_config(), "type_vocab_size", 0) > 1
        names = ["input_ids"]
        if has_types and "token_type_ids" in encoded:
            names.append("token_type_ids")
        return [
            {name: np.array(encoded[name][row], np.int64) for name in names}
            for row in range(len(texts))
        ]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T), of pairs perhaps token_type_ids, labels (B,); padded
        on the right.
        """
        pad = DataCollatorWithPadding(self.tokenizer)
        return dict(pad([{**content, "label": label} for content, label in examples]))


class ImageClassification(Classification):
    """Images, which the image processor of the model resizes and normalizes when a batch is made."""

    def read(self, source: str, split: str) -> list[Labelled]:
        return load_images(source, split, self.settings.label_column)

    def bytes_of(self, content: Any) -> bytes:
        return image_bytes(content)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """pixel_values float32 (B, channels, height, width), labels int64 (B,)."""
        n_channels = getattr(
            getattr(self.config, "vision_config", self.config), "num_channels", None
        )
        mode = "L" if n_channels == 1 else "RGB"
        images = [np.array(open_image(content, mode)) for content, _ in examples]
        images = [image if image.ndim == 3 else image[..., None] for image in images]  # (h, w, c)
        made = self.processor(images, input_data_format="channels_last", return_tensors="pt")
        return {
            "pixel_values": made["pixel_values"],
            "labels": torch.tensor([index for _, index in examples]),
        }


TASK_CLASSES: dict[str, type[Task]] = {  # by the names of tasks in `RunSettings`
    "causal-lm": CausalLM,
    "text-classification": TextClassification,
    "text-regression": TextClassification,
    "image-classification": ImageClassification,
}


def load_processor(model: str, task: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a base, or for images its image processor, with PIL. Raises InputError if it
    has none, and ConfigError if transformers needs a package.
    """
    if not TASKS[task].has_images:
        return base.load_tokenizer(model, trust_remote_code)
    try:
        from_pretrained = AutoImageProcessor.from_pretrained
    except ImportError as error:
        raise ConfigError(
            f"transformers {version('transformers')} reads images only with torchvision: install it,"
            " or a newer transformers"
        ) from error
    return base.load(from_pretrained, model, trust_remote_code, backend="pil")


def _pad_token(tokenizer: Any, config: Any) -> int:
    size = config.get_text_config().vocab_size
    for candidate in (
        tokenizer.pad_token_id,
        config.get_text_config().pad_token_id,
        tokenizer.eos_token_id,
    ):
        # the padding token may not be in the model's vocabulary
        if candidate is not None and candidate < size:
            return candidate
    raise InputError(
        "the tokenizer has no padding or end-of-text token in the model's vocabulary; add one to it"
    )
