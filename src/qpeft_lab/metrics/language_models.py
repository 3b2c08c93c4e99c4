"""The perplexity of texts under a language model, over all scored tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError, DataError
from qpeft_lab.metrics.texts import check_strings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def perplexity(
    model: torch.nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int | None = None,
    batch_size: int = 8,
) -> float:
    """exp of the mean loss over all scored tokens, as `qpeft evaluate` measures it. Infinity on overflow.

    The texts are joined by the end-of-text token and cut into blocks of `seq_len` tokens. The first token of a block is
    not scored: it has no predecessor. Padding is not scored.

    Args:
        model: A causal language model, adapted or not.
        texts: The texts.
        tokenizer: The model's tokenizer.
        seq_len: Tokens per block. Default: the model's context, at most 512.
        batch_size: Blocks per forward pass; the perplexity does not depend on it.

    Raises:
        DataError: no list of texts, or they have no token to score.
        ConfigError: `seq_len` or `batch_size` is too small, or too long for the model's context.
    """
    from qpeft_lab.base_model import block_length, virtual_tokens
    from qpeft_lab.data.text import cut
    from qpeft_lab.training.score import evaluate_language_model

    check_strings(texts, "texts")
    for name, number, least in (("seq_len", seq_len, 2), ("batch_size", batch_size, 1)):
        if number is not None and number < least:
            raise ConfigError(f"{name} must be at least {least}, got {number}")
    config: Any = model.config
    n_tokens = block_length(seq_len, config, virtual_tokens(model))
    blocks = cut([{"text": text} for text in texts], n_tokens, tokenizer) if texts else []
    if not blocks:
        raise DataError("the texts have no token to score; give a text of two tokens or more")
    return evaluate_language_model(model, blocks, batch_size).perplexity
