"""Perplexities of texts under a language model, each over all scored tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpeft.checks import is_count
from qpeft.errors import ConfigError, DataError
from qpeft.metrics.words import check_strings

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
    """The perplexity of texts, as `qpeft evaluate` measures it: exp of the mean loss over all scored tokens.

    The texts are joined by the end-of-text token and cut into blocks of `seq_len` tokens. The first token of a block is
    not scored: it has no predecessor. Padding is not scored. Infinity on overflow.

    Args:
        model: A causal language model, adapted or not.
        texts: The texts.
        tokenizer: The model's tokenizer.
        seq_len: Tokens per block. Default: the model's context, at most 512.
        batch_size: Blocks per forward pass; the perplexity does not depend on it.

    Raises:
        DataError: no list of texts, or the texts have no token to score.
        ConfigError: `seq_len` or `batch_size` is no whole number, too small, or too long for the model's context.
    """
    check_strings(texts, "texts")
    seq_len = _block_length(model, seq_len, batch_size)
    from qpeft.training.blocks import cut
    from qpeft.training.metrics import evaluate_language_model

    blocks = cut([{"text": text} for text in texts], seq_len, tokenizer) if texts else []
    if not blocks:
        raise DataError("the texts have no token to score; give a text of two tokens or more")
    return evaluate_language_model(model, blocks, batch_size).perplexity


def padded_perplexity(
    model: torch.nn.Module,
    rows: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int | None = None,
    batch_size: int = 8,
) -> float:
    """The perplexity of the QPA paper (arXiv 2410.09846); use it only to compare with the paper.

    Every row, even an empty one, is cut or padded to `seq_len` with the end-of-text token, and the padding is scored. A
    trained model predicts padding easily, so that this perplexity is far below that of the text.

    Args:
        model: A causal language model, adapted or not.
        rows: The texts; lines of WikiText in the paper.
        tokenizer: The model's tokenizer.
        seq_len: Tokens per row. Default: the model's context, at most 512.
        batch_size: Rows per forward pass; the perplexity does not depend on it.

    Raises:
        DataError: no list of texts, or an empty one.
        ConfigError: `seq_len` or `batch_size` is no whole number, too small, or too long for the model's context.
    """
    check_strings(rows, "rows")
    seq_len = _block_length(model, seq_len, batch_size)
    from qpeft.training.blocks import Padding, padding_token
    from qpeft.training.encoding import encode
    from qpeft.training.metrics import evaluate_language_model

    if not rows:
        raise DataError("there are no rows to score")
    blocks = [tokens.cut(0, seq_len) for tokens in encode([{"text": row} for row in rows], tokenizer)]
    return evaluate_language_model(model, blocks, batch_size, Padding(seq_len, padding_token(tokenizer))).perplexity


def _block_length(model: Any, seq_len: int | None, batch_size: int) -> int:
    """The tokens of a block, after the numbers are checked."""
    from qpeft.core.base_model import block_length, virtual_tokens

    if seq_len is not None and not (is_count(seq_len) and seq_len > 1):
        raise ConfigError(f"seq_len must be a whole number of at least 2, got {seq_len!r}")
    if not is_count(batch_size):
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return block_length(seq_len, model.config, virtual_tokens(model))
