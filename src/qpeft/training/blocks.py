"""Blocks of tokens for training and evaluation: cut from documents, and batched."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from qpeft.errors import DataError, DataWarning, InputError, setting
from qpeft.training.encoding import Tokens, encode, end_of_text, join
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Columns, Row, has_validation_split, load_examples, long_lines, warn_of_shared

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")

IGNORED = -100

_HELD_OUT_EVERY = 20


class Padding(NamedTuple):
    """Blocks are padded to `length` with `token`, and the padding is scored."""

    length: int
    token: int


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
    make = _cutter(settings, seq_len, tokenizer)
    rows = load_examples(settings.data, "train", columns_of(settings))
    validation = settings.eval_data or (settings.data if has_validation_split(settings.data) else None)
    others: list[Row] = []
    if validation:
        others = load_examples(validation, "validation", columns_of(settings))
        train = make(rows, source=settings.data)
        evaluation = _cut_all(validation, others, make, seq_len) if train else []
    else:
        train, evaluation = _hold_out(rows, make)
    is_whole = "text" not in rows[0] or settings.pad_rows
    train = [block for block in train if is_whole or len(block.ids) == seq_len]
    if not train or not evaluation:
        raise DataError(_too_little_data(settings.data, rows, make, seq_len, tokenizer))
    contents = ([block.ids.tobytes() for block in part if len(block.ids)] for part in (train, evaluation))
    if not warn_of_shared("evaluation blocks", *contents):
        # the blocks of a copy may be shifted
        warn_of_shared("long lines of the evaluation data", long_lines(rows), long_lines(others))
    return Blocks(train, spread(settings.eval_blocks or 0, evaluation))


def load_evaluation(settings: TrainSettings, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """All of the data as evaluation blocks. Raises DataError if no token can be scored."""
    rows = load_examples(settings.data, "validation", columns_of(settings))
    return Blocks([], _cut_all(settings.data, rows, _cutter(settings, seq_len, tokenizer), seq_len))


def _cutter(settings: TrainSettings, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> partial[list[Tokens]]:
    """`cut` with the options of a run; it takes rows, and perhaps their `source`."""
    options = {"separator": settings.separator, "pad_rows": settings.pad_rows}
    return partial(cut, seq_len=seq_len, tokenizer=tokenizer, **options)


def _cut_all(source: str, rows: Sequence[Row], make: partial[list[Tokens]], seq_len: int) -> list[Tokens]:
    blocks = make(rows, source=source)
    if not blocks:
        raise DataError(
            f"{source} has no token to score within {setting('seq_len')}={seq_len}; raise "
            f"{setting('seq_len')} or give more data"
        )
    return blocks


def columns_of(settings: TrainSettings) -> Columns:
    """The columns of a text, or of a prompt and its answer, and whether every row is kept."""
    names = (settings.text_column, settings.prompt_column, settings.completion_column)
    return Columns(*names, keep_empty=settings.pad_rows or settings.separator is not None, by_line=settings.pad_rows)


def cut(
    rows: Sequence[Row],
    seq_len: int,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "the data",
    separator: str | None = None,
    pad_rows: bool = False,
) -> list[Tokens]:
    """Blocks of at most `seq_len` tokens, each with at least one token to score.

    Texts are joined by one end-of-text token, or by the text `separator`, and cut; only the last block may be shorter.
    With `pad_rows` every text is a block, perhaps an empty one, which `collate` pads. Rows with a prompt are not joined
    but truncated to `seq_len`; a row whose answer begins later is left out, with a warning.

    Raises DataError for rows with a prompt if `separator` or `pad_rows` is given.
    """
    if "text" not in rows[0] and (pad_rows or separator is not None):
        given = setting("pad_rows" if pad_rows else "separator")
        raise DataError(f"{given} is for rows of text; {source} has prompts or messages")
    if separator is not None:
        rows = [{"text": separator.join(row["text"] for row in rows)}]
    encoded = encode(rows, tokenizer)
    if pad_rows:
        return [tokens.cut(0, seq_len) for tokens in encoded]
    if "text" in rows[0]:
        end = end_of_text(tokenizer)
        joined = join([part for document in encoded for part in (end, document)][1:])
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


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token for padding that is scored: the end of a text. Raises InputError if the tokenizer has none."""
    if not isinstance(tokenizer.eos_token_id, int):
        raise InputError("the tokenizer has no end-of-text token to pad rows with; add one to it")
    return tokenizer.eos_token_id


def collate(blocks: Sequence[Tokens], padding: Padding | None = None) -> dict[str, torch.Tensor]:
    """A batch of int64 tensors (B, T), padded on the right: input_ids, attention_mask, and labels.

    A label is -100 where the token is not scored. The padding has the mask 0; its id is 0 and its label -100, unless
    `padding` scores it.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, masks, labels = [], [], []
    for block in blocks:
        n_padding = 0 if padding is None else padding.length - len(block.ids)
        scored_padding = np.full(n_padding, 0 if padding is None else padding.token, dtype=np.int64)
        ids.append(torch.from_numpy(np.concatenate([block.ids, scored_padding])))
        masks.append(torch.from_numpy(np.repeat([1, 0], [len(block.ids), n_padding])))
        label = np.concatenate([np.where(block.scored, block.ids, IGNORED), scored_padding])
        label[0] = IGNORED  # it has no predecessor
        labels.append(torch.from_numpy(label))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def _hold_out(rows: Sequence[Row], make: partial[list[Tokens]]) -> tuple[list[Tokens], list[Tokens]]:
    """Holds out every 20th document, or with fewer documents the last 20th of the blocks, at least one."""
    if len(rows) >= _HELD_OUT_EVERY:
        kept = [row for number, row in enumerate(rows, start=1) if number % _HELD_OUT_EVERY]
        return make(kept), make(rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])
    blocks = make(rows)
    n_train = len(blocks) - max(1, len(blocks) // _HELD_OUT_EVERY)
    return blocks[:n_train], blocks[n_train:]


def _too_little_data(
    source: str,
    rows: Sequence[Row],
    make: partial[list[Tokens]],
    seq_len: int,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    if make.keywords["pad_rows"]:
        return f"{source} has {len(rows)} row, too few for training and evaluation; set {setting('eval_data')}"
    if "text" not in rows[0]:
        if n_usable := len(make(rows)):
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
