"""Texts for `small_budgets.py`: documents split by their order, and cut into blocks of equal length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from qpeft.demo.corpus import numpy_docs

_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


class Blocks(NamedTuple):
    """Token ids of each part, each (blocks, T) int64."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor

    def sha256(self) -> str:
        """Hash of every token in order."""
        sha = hashlib.sha256()
        for part in self:
            sha.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        return sha.hexdigest()


def tales(file: Path) -> list[str]:
    """Grimm: tales stand four blank lines apart. Straight quotes, and hard line breaks joined: a line a paragraph."""
    text = file.read_text(encoding="utf-8").translate(_STRAIGHT).strip()
    return [re.sub(r"\n{2,}", "\n", re.sub(r"(?<!\n)\n(?!\n)", " ", tale)) for tale in re.split(r"\n{5,}", text)]


def articles(file: Path) -> list[str]:
    """WikiText: an article begins with a line ` = Title = `."""
    parts = re.split(r"(?m)^(?= = [^=])", file.read_text(encoding="utf-8"))
    return [article.strip() for article in parts if article.strip()]


CORPORA: dict[str, Callable[[Path], list[str]]] = {
    "grimm": tales,
    "wikitext": articles,
    "numpy-docs": lambda _: numpy_docs(),
}


def spread(blocks: torch.Tensor, limit: int) -> torch.Tensor:
    """`limit` of the blocks (n, T), evenly spaced; all where there are no more."""
    return blocks if len(blocks) <= limit else blocks[torch.arange(limit) * len(blocks) // limit]


def load_blocks(corpus: str, file: Path | None, tokenizer: PreTrainedTokenizerBase, length: int) -> Blocks:
    """80/10/10 % of the characters; a document belongs to the part in which it begins."""
    if file is None and corpus != "numpy-docs":
        raise SystemExit(f"corpus {corpus} needs its text file: name it with --data")
    documents = CORPORA[corpus](file or Path())
    total, before = sum(map(len, documents)), 0
    parts: tuple[list[str], ...] = ([], [], [])
    for document in documents:
        share = before / total
        parts[0 if share < 0.8 else 1 if share < 0.9 else 2].append(document)
        before += len(document)
    return Blocks(*(_cut(part, tokenizer, length) for part in parts))


def _cut(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
    """Every document behind one start token; the last partial block is dropped, so there is no padding."""
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor([i for document in encoded for i in (tokenizer.bos_token_id, *document)])
    return ids[: len(ids) // length * length].view(-1, length)
