"""Classification of texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers import AutoModelForSequenceClassification

from qpeft.core import base_model as base
from qpeft.errors import ConfigError, DataError, DataWarning, InputError, setting
from qpeft.training.encoding import warn_of_unknown
from qpeft.training.interrupt import interruptible
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Row, check_text, has_validation_split, load_rows
from qpeft.training.tasks.classification import Classification, Example
from qpeft.training.tasks.labelled_data import Labelled

if TYPE_CHECKING:
    from torch import Tensor


class EncodedText(NamedTuple):
    """A text, or a pair of texts, of T tokens."""

    ids: np.ndarray  # (T,) int64
    types: np.ndarray | None  # (T,) int64, 1 for tokens of the second text; None if the model distinguishes none


class TextClassification(Classification):
    """Texts or pairs of texts, each truncated to `seq_len` tokens and padded to the longest of its batch."""

    name = "text-classification"

    def __init__(self, settings: TrainSettings, reserved: int = 0, labels: Sequence[str] | None = None):
        super().__init__(settings, reserved, labels)
        texts = [text.ids for text, _ in (*self.train, *self.evaluation)]
        base.check_vocabulary(texts, self.config)
        warn_of_unknown(texts, self.tokenizer, settings.data, are_scored=False)

    def _load_processor(self, reserved: int) -> None:
        self.tokenizer = base.load_tokenizer(self.settings.model, self.settings.trust_remote_code)
        self.pad = _pad_token(self.tokenizer, self.config)
        self._length = _longest(self.settings.seq_len, self.config, self.tokenizer, reserved)

    def read(self, source: str, split: str) -> list[Labelled]:
        s = self.settings
        columns = [column for column in (s.text_column, s.text_pair_column) if column is not None]
        rows = load_rows(source, split, (*columns, s.label_column))
        labelled = list(self._labelled(source, rows, columns))
        with_text = [(texts, label) for texts, label in labelled if any(text.strip() for text in texts)]
        if not with_text:
            raise DataError(f"{source} has no example with a text; give rows with a text in column {columns[0]!r}")
        if n_empty := len(labelled) - len(with_text):
            found = f"{n_empty} of {len(labelled)} rows of {source} have no text; they are left out"
            warnings.warn(DataWarning(found), stacklevel=1)
        texts, labels = zip(*with_text, strict=True)
        return list(zip(self._encode(texts), labels, strict=True))

    def _labelled(self, source: str, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Labelled]:
        """The texts of each row with its label. Raises DataError."""
        if not rows:
            raise DataError(f"{source} is empty")
        label = self.settings.label_column
        names = (*("text_column", "text_pair_column")[: len(columns)], "label_column")
        for column, name in zip((*columns, label), names, strict=True):
            if column not in rows[0]:
                found = ", ".join(map(str, rows[0]))
                raise DataError(f"{source} has the columns {found}, but no {column!r}; set {setting(name)}")
        for number, row in enumerate(rows, start=1):
            where = f"{source}, row {number}"
            for column in columns:
                if not isinstance(row.get(column), str | None):
                    raise DataError(f"{where}: column {column!r} has a {type(row[column]).__name__}, not a str")
            check_text(where, [row.get(column) for column in (*columns, label)])
            yield [row.get(column) or "" for column in columns], self.label(row.get(label), where)

    def _encode(self, texts: Sequence[Sequence[str]]) -> list[EncodedText]:
        """Each text, or pair of texts, truncated: of a pair the longer text first, as transformers does."""
        first, *second = (list(part) for part in zip(*texts, strict=True))
        options: dict[str, Any] = {"truncation": True, "max_length": self._length, "verbose": False}
        options["text_pair"] = second[0] if second else None
        encoded = interruptible(lambda: self.tokenizer(first, **options))
        ids = [np.array(one, dtype=np.int64) for one in encoded["input_ids"]]
        if not second or "token_type_ids" not in encoded or not _takes_token_types(self.config):
            return [EncodedText(one, None) for one in ids]
        types = [np.array(one, dtype=np.int64) for one in encoded["token_type_ids"]]
        return [EncodedText(*both) for both in zip(ids, types, strict=True)]

    def has_validation(self, source: str) -> bool:
        return has_validation_split(source)

    def content_bytes(self, content: EncodedText) -> bytes:
        return b"".join(part.tobytes() for part in content if part is not None)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T), of pairs perhaps token_type_ids, labels (B,); padded on the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts = [torch.from_numpy(text.ids) for text, _ in examples]
        types = [torch.from_numpy(text.types) for text, _ in examples if text.types is not None]
        return {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self.pad or 0),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
            **({"token_type_ids": pad_sequence(types, batch_first=True)} if types else {}),
            "labels": torch.tensor([label for _, label in examples]),
        }

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))


def _takes_token_types(config: Any) -> bool:
    """Whether the model distinguishes two texts by their token types, as BERT does."""
    if getattr(config.get_text_config(), "type_vocab_size", 2) < 2:
        return False
    model: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    return "token_type_ids" in signature(model.forward).parameters


def _pad_token(tokenizer: Any, config: Any) -> int:
    size = config.get_text_config().vocab_size
    for candidate in (tokenizer.pad_token_id, config.get_text_config().pad_token_id, tokenizer.eos_token_id):
        if candidate is not None and candidate < size:  # the padding token may not be in the model's vocabulary
            return candidate
    raise InputError("the tokenizer has no padding or end-of-text token in the model's vocabulary; add one to it")


def _longest(seq_len: int | None, config: Any, tokenizer: Any, reserved: int) -> int:
    """The longest text in tokens: the context of the model or of the tokenizer, whichever is shorter."""
    room = tokenizer.model_max_length - reserved
    if seq_len is not None and seq_len > room:
        raise ConfigError(f"{setting('seq_len')}={seq_len} is longer than the {room} tokens that the tokenizer allows")
    return min(base.block_length(seq_len, config, reserved), room)
