"""The score of a language model: sums over scored tokens, so that it depends on neither batch size nor padding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.training.blocks import IGNORED, collate
from qpeft.training.encoding import Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


HOPELESS_LOSS = 20.0  # nats per token; beyond it the digits of a perplexity are meaningless


@dataclass(frozen=True)
class LanguageModelScore:
    """Negative log-likelihood `nats` of `n_tokens` scored tokens, which encode `n_bytes` UTF-8 bytes."""

    nats: float
    n_tokens: int
    n_bytes: int

    def __add__(self, other: LanguageModelScore) -> LanguageModelScore:
        """The score of both texts together."""
        return LanguageModelScore(self.nats + other.nats, self.n_tokens + other.n_tokens, self.n_bytes + other.n_bytes)

    @property
    def loss(self) -> float:
        """nats / n_tokens."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / n_tokens) over all tokens; infinity on overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * n_bytes): comparable across tokenizers."""
        return self.nats / (math.log(2) * self.n_bytes) if self.n_bytes else math.nan

    def to_dict(self) -> dict[str, float]:
        """All metrics."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nats": self.nats,
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
        }

    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name."""
        return {
            "perplexity": f"{self.perplexity:.4f}" if self.loss <= HOPELESS_LOSS else "inf-like",
            "loss, nats per token": f"{self.loss:.6f}",
            "bits per byte": f"{self.bits_per_byte:.6f}",
        }

    @property
    def size(self) -> str:
        """The amount of scored data."""
        return f"{self.n_tokens:,} tokens"


def evaluate_language_model(
    model: torch.nn.Module, blocks: Sequence[Tokens], batch_size: int = 8, padding_side: str = "right"
) -> LanguageModelScore:
    """Score the marked tokens of `blocks`, except the first of each block, which has no predecessor.

    The sum runs in float64. `batch_size` and `padding_side` change the time taken, not the score.
    """
    nats = 0.0
    with evaluation_mode(model):
        for start in range(0, len(blocks), batch_size):
            batch = collate(blocks[start : start + batch_size], padding_side)
            nats += _nats(model, batch, batch["labels"])
    scored = [block.scored[1:] for block in blocks]
    n_bytes = sum(int(block.n_bytes[1:][marks].sum()) for block, marks in zip(blocks, scored, strict=True))
    return LanguageModelScore(nats, sum(int(marks.sum()) for marks in scored), n_bytes)


def padded_perplexity(
    model: torch.nn.Module,
    lines: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int = 512,
    batch_size: int = 8,
) -> float:
    """The perplexity of the QPA paper (arXiv 2410.09846); use it only to compare with the paper.

    Every line, even an empty one, is cut or padded to `length` with the end-of-text token, and the padding is scored.
    Padding is easy to predict, so this perplexity is far below that of the text.
    """
    import torch

    end, nats = tokenizer.eos_token_id, 0.0
    with evaluation_mode(model):
        for start in range(0, len(lines), batch_size):
            rows = tokenizer(list(lines[start : start + batch_size]), truncation=True, max_length=length)["input_ids"]
            ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
            nats += _nats(model, {"input_ids": ids, "attention_mask": mask}, ids)
    return math.exp(nats / (len(lines) * (length - 1)))


def _nats(model: torch.nn.Module, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    """Sum over the labels (B, T) that are not -100, each predicted by the position before it."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    inputs: dict[str, Any] = {name: part.to(device) for name, part in batch.items() if name != "labels"}
    # the last T positions: virtual tokens of a prompt precede the text
    logits = model(**inputs).logits[:, -labels.shape[1] : -1]  # (B, T-1, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    targets = labels[:, 1:].flatten().to(device)
    return cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").double().sum().item()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradients. (Tensors made in torch's inference mode could not be used in a later backward.)"""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
