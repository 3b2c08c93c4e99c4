"""A tokenizer and a model that belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpeft.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig


def check_vocabulary(runs: Iterable[np.ndarray], config: PretrainedConfig) -> None:
    """Raise InputError if a run of token ids (T,) has one that the model does not know."""
    size = config.get_text_config().vocab_size
    highest = max(int(ids.max()) for ids in runs)
    if highest >= size:
        raise InputError(f"the tokenizer gives token {highest}, the model knows {size}; they do not belong together")
