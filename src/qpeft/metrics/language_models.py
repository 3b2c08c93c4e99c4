"""Perplexities of texts under a language model, each over all scored tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qpeft.errors import DataError
from qpeft.metrics.words import check_strings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def perplexity(
    model: torch.nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int = 512,
    batch_size: int = 8,
) -> float:
    """The perplexity of texts, as `qpeft evaluate` measures it: exp of the mean loss over all scored tokens.

    The texts are joined by the end-of-text token and cut into blocks of `length` tokens. The first token of a block is
    not scored: it has no predecessor. Padding is not scored. Infinity on overflow.

    Args:
        model: A causal language model, adapted or not.
        texts: The texts.
        tokenizer: The model's tokenizer.
        length: Tokens per block.
        batch_size: Blocks per forward pass; the perplexity does not depend on it.

    Raises:
        DataError: no list of texts, or the texts have no token to score.
    """
    check_strings(texts, "texts")
    from qpeft.training.blocks import cut
    from qpeft.training.metrics import evaluate_language_model

    blocks = cut([{"text": text} for text in texts], length, tokenizer) if texts else []
    if not blocks:
        raise DataError("the texts have no token to score; give a text of two tokens or more")
    return evaluate_language_model(model, blocks, batch_size).perplexity


def padded_perplexity(
    model: torch.nn.Module,
    rows: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int = 512,
    batch_size: int = 8,
) -> float:
    """The perplexity of the QPA paper (arXiv 2410.09846); use it only to compare with the paper.

    Every row, even an empty one, is cut or padded to `length` with the end-of-text token, and the padding is scored. A
    trained model predicts padding easily, so that this perplexity is far below that of the text.

    Args:
        model: A causal language model, adapted or not.
        rows: The texts; lines of WikiText in the paper.
        tokenizer: The model's tokenizer.
        length: Tokens per row.
        batch_size: Rows per forward pass; the perplexity does not depend on it.

    Raises:
        DataError: no list of texts, or an empty one.
    """
    check_strings(rows, "rows")
    from qpeft.training.blocks import Padding, padding_token
    from qpeft.training.encoding import encode
    from qpeft.training.metrics import evaluate_language_model

    if not rows:
        raise DataError("there are no rows to score")
    blocks = [tokens.cut(0, length) for tokens in encode([{"text": row} for row in rows], tokenizer)]
    return evaluate_language_model(model, blocks, batch_size, Padding(length, padding_token(tokenizer))).perplexity
