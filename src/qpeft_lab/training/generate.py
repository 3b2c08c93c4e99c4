"""Generation of texts, greedily or by beam search; the options are importable without torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from qpeft.checks import MOST, check_fields, option
from qpeft.errors import ConfigError, DataError
from qpeft.methods import of_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_MOST_BEAMS = 1000
_PREFIX_IS_LOST = "5.24"  # of transformers


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding, or beam search with several beams; `check()` validates it."""

    max_new_tokens: int = option(64, "Generate at most this many tokens.", at_least=1, at_most=MOST)
    num_beams: int = option(
        1,
        "Beams of the search; 1 takes the most likely token each time.",
        at_least=1,
        at_most=_MOST_BEAMS,
    )
    length_penalty: float = option(
        1.0, "Of beam search: the log-likelihood of a text is divided by its length to this power."
    )
    no_repeat_ngram_size: int = option(
        0,
        "No sequence of this many tokens occurs twice in the new text; 0 allows it.",
        at_least=0,
        at_most=MOST,
    )

    def check(self) -> None:
        """Raise ConfigError for a value out of range, or a length penalty without beams."""
        check_fields(self)
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ConfigError(
                "length_penalty is for beam search; set num_beams above 1, or leave it out"
            )


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    decoding: Decoding,
    batch_size: int = 8,
    temperature: float = 0.0,
    have_template: bool = False,
) -> list[str]:
    """The continuation of each prompt, up to an end of text, without the prompt.

    Prompts are padded on the left, so that `batch_size` does not change the texts. With virtual
    tokens, which padding would separate from the text, prompts are continued one by one. Above 0,
    `temperature` samples tokens. Prompts that `have_template`, of a chat, get no further special
    tokens, and their answers end before the mark of the template after an answer.

    Raises DataError if a prompt has no token, or does not fit into the model's context with the new
    tokens after it.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from qpeft_lab.data.text import adds_end, mark_after_answer

    n_new = decoding.max_new_tokens
    adapter = getattr(model, "active_peft_config", None)
    n_virtual = getattr(adapter, "num_virtual_tokens", None) or 0
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encode = partial(tokenizer, add_special_tokens=not have_template)
    is_ended = not have_template and adds_end(tokenizer)  # what follows an end is another text
    encoded = [torch.tensor(encode(prompt)["input_ids"], dtype=torch.int64) for prompt in prompts]
    encoded = [ids[: len(ids) - is_ended] for ids in encoded]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not len(ids) or (context is not None and len(ids) + n_new + n_virtual > context):
            raise DataError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {n_new} are generated: it"
                " needs at least one, and all must fit into the model's context; shorten it or"
                " reduce max_new_tokens"
            )
    at_once = 1 if n_virtual else batch_size
    # similar lengths in a batch
    places = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    sampling: dict[str, Any] = {}
    if temperature:  # from all tokens, not the 50 likely ones of transformers
        sampling = {"do_sample": True, "temperature": float(temperature), "top_k": 0}
    texts = [""] * len(prompts)
    configured = model.generation_config.eos_token_id  # such as the end of a turn
    several = [cast(Any, tokenizer.eos_token_id)]
    several += configured if isinstance(configured, list) else [configured]
    mark = mark_after_answer(tokenizer) if have_template else ""
    if mark and len(of_mark := tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1:
        several += of_mark
    ends = [token for token in dict.fromkeys(several) if token is not None]
    for start in range(0, len(places), at_once):
        batch = places[start : start + at_once]
        rows = [encoded[place].to(model.device) for place in batch]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
        )
        for place, new in zip(
            batch, generate(model, ids, mask, decoding, ends, **sampling), strict=True
        ):
            # decoded together: tokens may share a character or a blank
            both = (encoded[place].tolist(), encoded[place].tolist() + new.tolist())
            before, whole = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in both)
            texts[place] = whole[len(before) :]
    return [text.partition(mark)[0] for text in texts] if mark else texts  # of several tokens


def generate(
    model: Any, ids: Tensor, mask: Tensor, decoding: Decoding, ends: list[int], **others: Any
) -> Tensor:
    """The new tokens (B, new) after prompts (B, T), with a key-value cache; `others` are options of
    the model's method.

    `ends` end a text; what follows in a batch is the first of them. Raises ConfigError for prefix
    tuning with a transformers in which PEFT loses the prefix.
    """
    from transformers import NoRepeatNGramLogitsProcessor

    from qpeft_lab.training.score import evaluation_mode  # which imports torch

    refuse_lost_prefix(model)
    options = {
        "max_new_tokens": decoding.max_new_tokens,
        "do_sample": False,
        "use_cache": True,
        **others,
    }
    options |= {"pad_token_id": ends[0], "eos_token_id": ends} if ends else {"pad_token_id": 0}
    if decoding.num_beams > 1:
        options |= {
            "num_beams": decoding.num_beams,
            "length_penalty": float(decoding.length_penalty),
        }
    # the option of transformers also counts n-grams of the prompt
    if n := decoding.no_repeat_ngram_size:
        of_new: Any = NoRepeatNGramLogitsProcessor(n)
        options["logits_processor"] = [
            lambda written, scores: of_new(written[:, ids.shape[1] :], scores)
        ]
    with evaluation_mode(model), _without_defaults(model), warnings.catch_warnings():
        # with virtual tokens, PEFT drops position ids that transformers made
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        written = model.generate(input_ids=ids, attention_mask=mask, **options)
    return written[:, ids.shape[1] :]


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Within: `generate` does what its options say. The base's generation_config.json, such as its
    beams or repetition penalty, would decide all that they leave out.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    configured = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = configured


def refuse_lost_prefix(model: Any) -> None:
    """Raise ConfigError if `generate` would ignore the prefix of this model.

    PEFT 0.21.2 hands it over as past_key_values, and transformers 5.24 and later prefer the cache
    that they have made themselves: the texts would be those of the base.
    """
    import transformers
    from packaging.version import Version
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return
    config: Any = model.active_peft_config
    host = config.to_stock() if hasattr(config, "to_stock") else config
    record = of_config(host)
    is_lost = Version(transformers.__version__) >= Version(_PREFIX_IS_LOST)
    if record is not None and record.fills_cache and is_lost:
        raise ConfigError(
            f"with transformers {transformers.__version__} PEFT's `generate` ignores the prefix of"
            " an adapter, so the texts would be those of the base model; install an earlier"
            " transformers, or evaluate the loss, which is right"
        )
