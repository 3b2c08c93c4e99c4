"""The loss of a language model without the logits of a whole batch.

The logits of 4 x 128 tokens over SmolLM2's vocabulary, their softmax and the gradients of both are
half a gigabyte. `torch.nn.functional.linear_cross_entropy` multiplies with the output head and
computes loss and gradient for some tokens at a time. The Trainer and the model stay as they are: the
model is asked for the logits of the last token only, and a hook keeps the hidden states of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft_lab.data.text import IGNORED

ONE_LOGIT: dict[str, Any] = {"logits_to_keep": 1}  # for the model's forward: of the last token

_TOKENS = 128  # at a time; more are not faster
_WORTHWHILE = 1 << 26  # bytes of a batch's logits; below, they fit next to the activations

Loss = Callable[..., Tensor]


@contextmanager
def fused_loss(model: Any, n_tokens: int) -> Iterator[Loss | None]:
    """Within: the `compute_loss_func` of a Trainer whose batches contain `ONE_LOGIT`.

    None where the logits of `n_tokens` tokens are small, torch is older than 2.13, or the logits of
    the model are not the product of its hidden states and an unadapted output head.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    is_large = n_tokens * base.config.get_text_config().vocab_size * 4 >= _WORTHWHILE
    if not is_large or not hasattr(F, "linear_cross_entropy") or type(head) is not nn.Linear:
        yield None
        return
    kept: list[Tensor] = []  # hidden states (B, T, d_in) of the last forward pass

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept[:] = [output[0]]

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        hidden = kept.pop()  # (B, V + T, d_in): virtual tokens precede the text
        n_virtual = hidden.shape[1] - labels.shape[1]
        targets = F.pad(labels, (n_virtual, 0), value=IGNORED)[:, 1:].flatten()  # (B (V+T-1),)
        losses = F.linear_cross_entropy(
            hidden[:, :-1].flatten(0, 1).to(head.weight.dtype),  # (B (V+T-1), d_in)
            head.weight,
            targets,
            linear_bias=head.bias,
            reduction="none",  # in half precision a sum loses digits with every token
            ignore_index=IGNORED,
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=_TOKENS, chunking_method=None),
        )
        n_scored = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.float().sum() / n_scored

    hook = base.base_model.register_forward_hook(keep)
    try:
        yield loss if _is_head_product(base, head, kept) else None
    finally:
        hook.remove()


def _is_head_product(base: Any, head: nn.Linear, kept: list[Tensor]) -> bool:
    """Whether the model gives the logits of one token, and they are its hidden state times the
    head: neither scaled nor capped.
    """
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return False
    ids = torch.tensor([[0, 1]], device=head.weight.device)
    was_training = base.training
    base.eval()
    with torch.no_grad():
        logits = base(input_ids=ids, **ONE_LOGIT).logits  # (1, 1, vocabulary)
        expected = head(kept.pop()[:, -1:]) if kept else None
    base.train(was_training)
    return expected is not None and torch.equal(logits.to(expected.dtype), expected)
