"""How well a model predicts documents: token-weighted, so no batch size and no document order matters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 8
_IGNORED = -100


@dataclass(frozen=True)
class Score:
    """Sum of negative log-likelihoods, the number of scored tokens, and the texts' length in UTF-8 bytes."""

    nats: float
    tokens: int
    n_bytes: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens), never a mean of means."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * bytes): comparable across tokenizers."""
        return self.nats / (math.log(2) * self.n_bytes)

    def to_dict(self) -> dict[str, float]:
        """Every figure, ready for JSON."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.n_bytes,
        }


def score(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", docs: Sequence[str]) -> Score:
    """Score `docs`, chained with one end-of-text token between them, in blocks of the model's context.

    The last block is padded and masked, not dropped; the first token of a block has no target.
    """
    import torch
    from torch.nn.functional import cross_entropy

    blocks = _blocks(tokenizer, docs, model.config.max_position_embeddings)  # (blocks, T)
    was_training, nats, tokens = model.training, 0.0, 0
    model.eval()
    with torch.inference_mode():
        for labels in blocks.split(_BATCH):  # (B, T)
            ids = labels.masked_fill(labels == _IGNORED, 0)  # right padding: no real token sees it
            logits = model(input_ids=ids).logits[:, :-1]  # (B, T-1, vocabulary)
            targets = labels[:, 1:].flatten()
            each = cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=_IGNORED, reduction="none")
            nats += each.double().sum().item()
            tokens += int((targets != _IGNORED).sum())
    model.train(was_training)
    return Score(nats, tokens, sum(len(text.encode()) for text in docs))


def _blocks(tokenizer: "PreTrainedTokenizerBase", docs: Sequence[str], context: int):  # (blocks, context) int64
    import torch

    chain: list[int] = []
    for ids in tokenizer(list(docs), verbose=False)["input_ids"]:
        chain += [tokenizer.eos_token_id, *ids] if chain else ids
    chain += [_IGNORED] * (-len(chain) % context)
    return torch.tensor(chain).reshape(-1, context)
