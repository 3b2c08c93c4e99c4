"""The head of a tied base with `ensure_weight_tying`: its LoRA is that of the embedding,
transposed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qpeft.errors import ConfigError


class TransposedFactor(nn.Linear):
    """lora_A or lora_B of a head, which reads the embedding's factor at each use.

    In stock PEFT it is a parameter that shares its memory, which a generated tensor does not have.
    """

    source: tuple[Any, str]  # the embedding's factors by the adapter's name, and this name

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        factors, adapter_name = self.source
        return factors[adapter_name].t()


def tie_head(head: Any, embedding: Any, adapter_name: str) -> None:
    """Let a head that PEFT has tied follow the embedding's adapter.

    embedding (V, d): lora_embedding_A (r, V), lora_embedding_B (d, r)
    head      (V, d): lora_A (r, d), lora_B (V, r)

    Raises ConfigError if it is no head: an encoder and a decoder have embeddings of their own.
    """
    if not getattr(head, "lora_A", None):  # an embedding, or nothing that has an adapter
        raise ConfigError(
            "ensure_weight_tying also adapts the tied embeddings of the encoder and the decoder, which no generated"
            " adapter can tie: set ensure_weight_tying=False"
        )
    head.kwargs.pop("tied_adapter")  # tensors with a graph, which cannot be copied
    source_of = {
        head.lora_A: embedding.lora_embedding_B,
        head.lora_B: embedding.lora_embedding_A,
    }
    for own, source in source_of.items():
        factor = own[adapter_name]
        del factor.weight
        factor.__class__ = TransposedFactor
        factor.source = (source, adapter_name)
