"""Classification of texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.core import base_model as base
from qpeft.errors import ConfigError, DataError, DataWarning, InputError, setting
from qpeft.training.encoding import warn_of_unknown
from qpeft.training.interrupt import interruptible
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Row, has_validation_split, load_rows
from qpeft.training.tasks.classification import Classification, Example
from qpeft.training.tasks.labelled_data import Labelled, label_name

if TYPE_CHECKING:
    from torch import Tensor


class TextClassification(Classification):
    """Texts, each truncated to `seq_len` tokens and padded to the longest of its batch."""

    name = "text-classification"

    def __init__(self, settings: TrainSettings, reserved: int = 0, labels: Sequence[str] | None = None):
        super().__init__(settings, reserved, labels)
        texts = [ids for ids, _ in (*self.train, *self.evaluation)]
        base.check_vocabulary(texts, self.config)
        warn_of_unknown(texts, self.tokenizer, settings.data, are_scored=False)

    def _load_processor(self, reserved: int) -> None:
        self.tokenizer = base.load_tokenizer(self.settings.model, self.settings.trust_remote_code)
        self.pad = _pad_token(self.tokenizer, self.config)
        self._length = _longest(self.settings.seq_len, self.config, self.tokenizer, reserved)

    def read(self, source: str, split: str) -> list[Labelled]:
        columns = (self.settings.text_column, self.settings.label_column)
        rows = load_rows(source, split, columns)
        labelled = list(_labelled(source, rows, *columns))
        with_text = [row for row in labelled if row[0].strip()]
        if not with_text:
            raise DataError(f"{source} has no example with a text; give rows with a text in column {columns[0]!r}")
        if n_empty := len(labelled) - len(with_text):
            found = f"{n_empty} of {len(labelled)} rows of {source} have no text; they are left out"
            warnings.warn(DataWarning(found), stacklevel=1)
        texts, names = zip(*with_text, strict=True)
        options: dict[str, Any] = {"truncation": True, "max_length": self._length, "verbose": False}
        encoded = interruptible(lambda: self.tokenizer(list(texts), **options)["input_ids"])
        return [(np.array(ids, dtype=np.int64), name) for ids, name in zip(encoded, names, strict=True)]

    def has_validation(self, source: str) -> bool:
        return has_validation_split(source)

    def content_bytes(self, content: np.ndarray) -> bytes:
        return content.tobytes()

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T), labels (B,); int64, padded on the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts = [torch.from_numpy(ids) for ids, _ in examples]
        return {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self.pad or 0),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
            "labels": torch.tensor([index for _, index in examples]),
        }

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))


def _labelled(source: str, rows: Sequence[Row], text: str, label: str) -> Any:
    if not rows:
        raise DataError(f"{source} is empty")
    for column, name in ((text, "text_column"), (label, "label_column")):
        if column not in rows[0]:
            found = ", ".join(map(str, rows[0]))
            raise DataError(f"{source} has the columns {found}, but no {column!r}; set {setting(name)}")
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if not isinstance(row.get(text), str | None):
            raise DataError(f"{where}: column {text!r} has a {type(row[text]).__name__}, not a str")
        yield row.get(text) or "", label_name(row.get(label), where)


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
