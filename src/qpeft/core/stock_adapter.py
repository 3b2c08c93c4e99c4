"""What an exported adapter consists of."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class StockAdapter(NamedTuple):
    """The stock PEFT adapter that is equal to a trained one."""

    config: Any  # of stock PEFT
    tensors: dict[str, Tensor]  # by their keys in a stock file
    n_trained: int  # parameters of the trained adapter
    n_deployed: int  # parameters of this one
    ranks: dict[str, int] | None = None  # of each module, if some had no effect


def stock_key(label: str) -> str:
    """The key in a stock file of the tensor with this label of a slot."""
    # the key of DoRA's magnitude in PEFT's files lacks the ".weight" of its module
    return "base_model.model." + label.replace(
        "lora_magnitude_vector.weight", "lora_magnitude_vector"
    )
