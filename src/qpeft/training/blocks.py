"""Blocks of tokens for training and evaluation: cut from documents, and batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qpeft.errors import DataError
from qpeft.training.encoding import Tokens, encode, end_of_text, join
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Columns, Row, has_validation_split, load_examples

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
    columns = Columns(settings.text_column, settings.prompt_column, settings.completion_column)
    rows = load_examples(settings.data, "train", columns)
    validation = settings.eval_data or (settings.data if has_validation_split(settings.data) else None)
    if validation:
        train = cut(rows, seq_len, tokenizer)
        evaluation = cut(load_examples(validation, "validation", columns), seq_len, tokenizer)
    else:
        train, evaluation = _hold_out(rows, seq_len, tokenizer)
    train = [block for block in train if "text" not in rows[0] or len(block.ids) == seq_len]
    if validation and train and not evaluation:
        raise DataError(
            f"{validation} has nothing to score within seq_len={seq_len} tokens; raise seq_len or give more data"
        )
    if not train or not evaluation:
        raise DataError(_too_little_data(settings.data, rows, seq_len, tokenizer))
    return Blocks(train, spread(settings.eval_blocks or 0, evaluation))


def cut(rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Blocks of at most `seq_len` tokens, each with at least one token to score.

    Texts are joined by one end-of-text token and cut; only the last block may be shorter. Rows with a prompt are not
    joined but truncated to `seq_len`; a row whose answer begins later is left out.
    """
    encoded = encode(rows, tokenizer)
    if "text" in rows[0]:
        joined = join(list(_with_separators(encoded, end_of_text(tokenizer))))
        blocks = [joined.cut(start, start + seq_len) for start in range(0, len(joined.ids), seq_len)]
    else:
        blocks = [tokens.cut(0, seq_len) for tokens in encoded]
    return [block for block in blocks if block.n_targets]


def spread(limit: int, blocks: list[Item]) -> list[Item]:
    """At most `limit` items, evenly spaced; 0 takes all."""
    if not limit or len(blocks) <= limit:
        return blocks
    return [blocks[i * len(blocks) // limit] for i in range(limit)]


def collate(blocks: Sequence[Tokens], padding_side: str = "right") -> dict[str, torch.Tensor]:
    """A batch of int64 tensors (B, T): input_ids, attention_mask, and labels, -100 where a token is not scored.

    With padding on the left there are position_ids too, which count the tokens without padding. Padding has the id 0;
    the attention mask tells it from a token 0.
    """
    import torch

    longest = max(len(block.ids) for block in blocks)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for block in blocks:
        n_padding = longest - len(block.ids)
        widths = (n_padding, 0) if padding_side == "left" else (0, n_padding)
        labels = np.where(block.scored, block.ids, IGNORED)
        labels[0] = IGNORED  # it has no predecessor, and padding to its left must not predict it
        rows["input_ids"].append(np.pad(block.ids, widths))
        rows["attention_mask"].append(np.pad(np.ones_like(block.ids), widths))
        rows["labels"].append(np.pad(labels, widths, constant_values=IGNORED))
    batch = {name: torch.from_numpy(np.stack(arrays)) for name, arrays in rows.items()}
    if padding_side == "left":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return batch


def _with_separators(documents: Sequence[Tokens], separator: Tokens) -> Iterable[Tokens]:
    for number, document in enumerate(documents):
        if number:
            yield separator
        yield document


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
                f"within seq_len={seq_len} tokens; give at least 2 examples, or set eval_data"
            )
        return f"no answer in {source} begins within seq_len={seq_len} tokens; raise seq_len or shorten the prompts"
    n = sum(len(tokens.ids) for tokens in encode(rows, tokenizer))
    return (
        f"{source} has {n} tokens, too few for one training block and one evaluation block of seq_len={seq_len}; "
        "lower seq_len, give more text, or set eval_data"
    )
