"""How well a model predicts documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qpeft.training.metrics import LanguageModelScore


def score(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", docs: Sequence[str]) -> "LanguageModelScore":
    """Score `docs`, chained with one end-of-text token between them, in blocks of the model's whole context."""
    from qpeft.training.blocks import cut
    from qpeft.training.metrics import evaluate_language_model

    rows = [{"text": text} for text in docs]
    return evaluate_language_model(model, cut(rows, model.config.max_position_embeddings, tokenizer))
