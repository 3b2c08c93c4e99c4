"""Generation of texts, greedily or by beam search, and the options of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from qpeft.core.base_model import virtual_tokens
from qpeft.errors import DataError, setting
from qpeft.training.decoding import Decoding
from qpeft.training.metrics import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    decoding: Decoding,
    batch_size: int = 8,
    on_texts: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """The continuation of each prompt, up to an end of text, without the prompt.

    Prompts are padded on the left, so that `batch_size` does not change the texts. With virtual tokens, which padding
    would separate from the text, a batch holds prompts of equal length. `on_texts` receives the size of each finished
    batch.

    Raises:
        DataError: a prompt has no token, or does not fit into the model's context with the new tokens after it.
    """
    n_new = decoding.max_new_tokens
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids or not has_room(model, len(ids) + n_new):
            raise DataError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {n_new} are generated: it needs at least one, "
                f"and all must fit into the model's context; shorten it or reduce {setting('max_new_tokens')}"
            )
    texts, end = [""] * len(prompts), cast("int | None", tokenizer.eos_token_id)
    equal = any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())
    for places in _batches(encoded, batch_size, equal_length=equal):
        rows = [encoded[place] for place in places]
        for place, row, new in zip(places, rows, _continue(model, rows, decoding, end), strict=True):
            texts[place] = new_text(tokenizer, row, new)
        on_texts(len(places))
    return texts


def has_room(model: Any, n_tokens: int) -> bool:
    """Whether the model's context has room for `n_tokens` tokens, next to the virtual tokens of an adapter."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context is None or n_tokens + virtual_tokens(model) <= context


class _NoRepetition(LogitsProcessor):
    """No n-gram of the new tokens occurs twice. That of transformers also counts those of the prompt."""

    def __init__(self, n: int, n_prompt: int):
        self._processor, self._n_prompt = NoRepeatNGramLogitsProcessor(n), n_prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self._processor(input_ids[:, self._n_prompt :], scores)


def decode(
    model: Any, ids: Tensor, mask: Tensor, decoding: Decoding, end: int | None = None, **sampling: Any
) -> Tensor:
    """As `generate`, with the options of `decoding`."""
    beams = {"num_beams": decoding.num_beams, "length_penalty": float(decoding.length_penalty)}
    options: dict[str, Any] = beams if decoding.num_beams > 1 else {}
    if n := decoding.no_repeat_ngram_size:
        options = {**options, "logits_processor": LogitsProcessorList([_NoRepetition(n, ids.shape[1])])}
    return generate(model, ids, mask, end, max_new_tokens=decoding.max_new_tokens, **options, **sampling)


def generate(model: Any, ids: Tensor, mask: Tensor, end: int | None = None, **options: Any) -> Tensor:
    """The likeliest tokens (B, new) after prompts (B, T), with a key-value cache; `options` of the model's `generate`.

    `end`: the end-of-text token; by default that of the model's generation config.
    """
    options = {"do_sample": False, **options}
    stop = {} if end is None else {"eos_token_id": end}
    with evaluation_mode(model), warnings.catch_warnings():
        # with virtual tokens, PEFT drops position ids that transformers made
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        written = model.generate(
            input_ids=ids, attention_mask=mask, use_cache=True, pad_token_id=end or 0, **stop, **options
        )
    return written[:, ids.shape[1] :]


def _continue(model: Any, rows: Sequence[Sequence[int]], decoding: Decoding, end: int | None) -> Tensor:
    """Token ids (B, new) after prompts that are padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return decode(model, ids, mask, decoding, end)


def _batches(encoded: Sequence[Sequence[int]], batch_size: int, *, equal_length: bool) -> Iterator[list[int]]:
    """Places of prompts that share a batch: of similar length, or of equal length."""
    places: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place])):
        differs = equal_length and places and len(encoded[places[0]]) != len(encoded[place])
        if len(places) == batch_size or differs:
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def new_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: Tensor) -> str:
    """The new text, decoded together with the prompt: tokens may share a character or a blank."""
    before, whole = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, prompt + new.tolist()))
    return whole[len(before) :]
