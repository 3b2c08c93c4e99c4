"""Blocks of tokens for training and evaluation: cut from documents, and batched."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qpeft.errors import DataError, DataWarning, setting
from qpeft.training.encoding import Tokens, encode, end_of_text, join
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Columns, Row, has_validation_split, load_examples, long_lines, warn_of_shared

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")

IGNORED = -100

_HELD_OUT_EVERY = 20


@dataclass(frozen=True)
class Blocks:
    """The training and evaluation blocks of a run."""

    train: list[Tokens]
    evaluation: list[Tokens]

    def sha256(self) -> str:
        """Hash of all tokens and marks in order; it depends on the text, the tokenizer, the length and the split."""
        sha = hashlib.sha256()
        for block in (*self.train, *self.evaluation):
            for part in (np.array([len(block.ids)]), block.ids, block.scored):
                sha.update(part.tobytes())
        return sha.hexdigest()


def load_blocks(settings: TrainSettings, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """Read, tokenize, split and cut the data of a run. Raises DataError if there is too little data."""
    rows = load_examples(settings.data, "train", columns_of(settings))
    validation = settings.eval_data or (settings.data if has_validation_split(settings.data) else None)
    others: list[Row] = []
    if validation:
        others = load_examples(validation, "validation", columns_of(settings))
        train = cut(rows, seq_len, tokenizer, settings.data)
        evaluation = _cut_all(validation, others, seq_len, tokenizer) if train else []
    else:
        train, evaluation = _hold_out(rows, seq_len, tokenizer)
    train = [block for block in train if "text" not in rows[0] or len(block.ids) == seq_len]
    if not train or not evaluation:
        raise DataError(_too_little_data(settings.data, rows, seq_len, tokenizer))
    contents = ([block.ids.tobytes() for block in part] for part in (train, evaluation))
    if not warn_of_shared("evaluation blocks", *contents):
        # the blocks of a copy may be shifted
        warn_of_shared("long lines of the evaluation data", long_lines(rows), long_lines(others))
    return Blocks(train, spread(settings.eval_blocks or 0, evaluation))


def load_evaluation(settings: TrainSettings, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """All of the data as evaluation blocks. Raises DataError if no token can be scored."""
    rows = load_examples(settings.data, "validation", columns_of(settings))
    return Blocks([], _cut_all(settings.data, rows, seq_len, tokenizer))


def _cut_all(source: str, rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    blocks = cut(rows, seq_len, tokenizer, source)
    if not blocks:
        raise DataError(
            f"{source} has no token to score within {setting('seq_len')}={seq_len}; raise "
            f"{setting('seq_len')} or give more data"
        )
    return blocks


def columns_of(settings: TrainSettings) -> Columns:
    """The columns of a text, or of a prompt and its answer."""
    return Columns(settings.text_column, settings.prompt_column, settings.completion_column)


def cut(
    rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase, source: str = "the data"
) -> list[Tokens]:
    """Blocks of at most `seq_len` tokens, each with at least one token to score.

    Texts are joined by one end-of-text token and cut; only the last block may be shorter. Rows with a prompt are not
    joined but truncated to `seq_len`; a row whose answer begins later is left out, with a warning.
    """
    encoded = encode(rows, tokenizer)
    if "text" in rows[0]:
        separator = end_of_text(tokenizer)
        joined = join([part for document in encoded for part in (separator, document)][1:])
        blocks = [joined.cut(start, start + seq_len) for start in range(0, len(joined.ids), seq_len)]
    else:
        blocks = [tokens.cut(0, seq_len) for tokens in encoded]
    scored = [block for block in blocks if block.n_targets]
    if "text" not in rows[0] and 0 < len(scored) < len(rows):
        found = f"{len(rows) - len(scored)} of {len(rows)} rows of {source} are left out: no answer begins within"
        warnings.warn(
            DataWarning(
                f"{found} {setting('seq_len')}={seq_len} tokens; raise {setting('seq_len')} or shorten the prompts"
            ),
            stacklevel=2,
        )
    return scored


def spread(limit: int, blocks: list[Item]) -> list[Item]:
    """At most `limit` items, evenly spaced; 0 takes all."""
    if not limit or len(blocks) <= limit:
        return blocks
    return [blocks[i * len(blocks) // limit] for i in range(limit)]


def collate(blocks: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """A batch of int64 tensors (B, T), padded on the right: input_ids, attention_mask, and labels.

    A label is -100 where the token is not scored. Padding has the id 0 and the mask 0.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, labels = [], []
    for block in blocks:
        ids.append(torch.from_numpy(block.ids))
        labels.append(torch.from_numpy(np.where(block.scored, block.ids, IGNORED)))
        labels[-1][0] = IGNORED  # it has no predecessor
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def _hold_out(
    rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Tokens], list[Tokens]]:
    """Holds out every 20th document, or with fewer documents the last 20th of the blocks, at least one."""
    if len(rows) >= _HELD_OUT_EVERY:
        kept = [row for number, row in enumerate(rows, start=1) if number % _HELD_OUT_EVERY]
        return cut(kept, seq_len, tokenizer), cut(rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY], seq_len, tokenizer)
    blocks = cut(rows, seq_len, tokenizer)
    n_train = len(blocks) - max(1, len(blocks) // _HELD_OUT_EVERY)
    return blocks[:n_train], blocks[n_train:]


def _too_little_data(source: str, rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if "text" not in rows[0]:
        if n_usable := len(cut(rows, seq_len, tokenizer)):
            return (
                f"{source} has too few examples for training and evaluation: {n_usable} of {len(rows)} have an answer "
                f"within {setting('seq_len')}={seq_len} tokens; give at least 2 examples, or set {setting('eval_data')}"
            )
        return (
            f"no answer in {source} begins within {setting('seq_len')}={seq_len} tokens; raise {setting('seq_len')} or "
            "shorten the prompts"
        )
    n = sum(len(tokens.ids) for tokens in encode(rows, tokenizer))
    return (
        f"{source} has {n} tokens, too few for one training block and one evaluation block of "
        f"{setting('seq_len')}={seq_len}; lower {setting('seq_len')}, give more text, or set {setting('eval_data')}"
    )
