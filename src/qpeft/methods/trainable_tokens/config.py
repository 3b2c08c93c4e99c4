"""The config of PEFT's trainable tokens, with a number of tokens instead of their indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import TrainableTokensConfig

from qpeft.errors import ConfigError, setting


@dataclass
class TokensConfig(TrainableTokensConfig):
    """PEFT's config; without `token_indices`, the `n_tokens` most frequent tokens of the training data are trained.

    It is saved as PEFT's own config, with the indices.
    """

    n_tokens: int = field(
        default=2, metadata={"help": "Number of tokens, the most frequent ones of the training data."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_chosen = bool(self.token_indices)
        if not self.is_chosen:
            if not isinstance(self.n_tokens, int) or self.n_tokens < 1:
                raise ConfigError(f"{setting('n_tokens')} must be an integer of at least 1, got {self.n_tokens!r}")
            self.token_indices = list(range(self.n_tokens))  # as many as there will be, for counts

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "n_tokens"}


def choose_for(config: Any) -> Callable[[Any, Any, Sequence[Mapping[str, Any]]], None] | None:
    """`choose_tokens`, unless the indices are given."""
    return None if config.is_chosen else choose_tokens


def choose_tokens(base: Any, config: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """Set the indices to the most frequent tokens of the batches; among equally frequent ones, to the lowest.

    Raises ConfigError if the batches contain fewer different tokens.
    """
    rows = base.get_input_embeddings().weight.shape[0]
    counts = torch.zeros(rows, dtype=torch.int64)
    for batch in batches:
        ids = batch["input_ids"]
        mask = batch.get("attention_mask")
        present = ids.flatten() if mask is None else ids[mask.bool()]
        counts += torch.bincount(present.cpu(), minlength=rows)
    n_found = int((counts > 0).sum())
    if config.n_tokens > n_found:
        raise ConfigError(
            f"{setting('n_tokens')}={config.n_tokens} exceeds the {n_found} different tokens in {len(batches)} batches "
            f"of training data; use at most {n_found}, or give token_indices"
        )
    chosen = torch.sort(counts, descending=True, stable=True).indices[: config.n_tokens]
    config.token_indices, config.is_chosen = sorted(chosen.tolist()), True


def check_has_tokens(settings: Any) -> None:
    """Raise ConfigError for a task without texts."""
    if settings.task == "image-classification":
        raise ConfigError(
            "trainable_tokens trains the embeddings of tokens, which images do not have; use another method"
        )
