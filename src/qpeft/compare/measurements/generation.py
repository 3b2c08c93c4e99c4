"""Greedy generation of texts, and BLEU, ROUGE and BERTScore against references."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from qpeft.errors import DataError, InputError
from qpeft.training.base_model import load_tokenizer, load_weights, refuse_lacking
from qpeft.training.metrics import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUGE = ("rouge1", "rouge2", "rougeL")
NO_ENCODER = "bertscore: no local encoder given"
_MAX_LENGTH = 2**31 - 1  # the limit of the tokenizers library; transformers stores a larger number for "unknown"


def generate_texts(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 8
) -> list[str]:
    """The greedy continuation of each prompt, up to an end of text, without the prompt.

    Prompts are padded on the left, so that `batch_size` does not change the texts. With virtual tokens, which padding
    would separate from the text, a batch holds prompts of equal length.

    Raises:
        DataError: a prompt has no token, or does not fit into the model's context with `max_new_tokens` after it.
    """
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids or not has_room(model, len(ids) + max_new_tokens):
            raise DataError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {max_new_tokens} are generated: it needs at "
                "least one, and all must fit into the model's context; shorten it or reduce max_new_tokens"
            )
    texts, end = [""] * len(prompts), cast("int | None", tokenizer.eos_token_id)
    equal = any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())
    for places in _batches(encoded, batch_size, equal_length=equal):
        rows = [encoded[place] for place in places]
        for place, row, new in zip(places, rows, _continue(model, rows, max_new_tokens, end), strict=True):
            texts[place] = _new_text(tokenizer, row, new)
    return texts


def has_room(model: Any, n_tokens: int) -> bool:
    """Whether the model's context has room for `n_tokens` tokens, next to the virtual tokens of an adapter."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    configs = getattr(model, "peft_config", {}).values()
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in configs), default=0)
    return context is None or n_tokens + virtual <= context


def generate(model: Any, ids: Tensor, mask: Tensor, end: int | None = None, **length: int) -> Tensor:
    """Greedy tokens (B, new) after prompts (B, T), with a key-value cache; `length` in arguments of `generate`.

    `end`: the end-of-text token; by default that of the model's generation config.
    """
    stop = {} if end is None else {"eos_token_id": end}
    with evaluation_mode(model), warnings.catch_warnings():
        # with virtual tokens, PEFT drops position ids that transformers made
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        written = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=end or 0, **stop, **length
        )
    return written[:, ids.shape[1] :]


def _continue(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, end: int | None) -> Tensor:
    """Token ids (B, new) after prompts that are padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return generate(model, ids, mask, end, max_new_tokens=max_new_tokens)


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


def _new_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: Tensor) -> str:
    """The new text, decoded together with the prompt: tokens may share a character or a blank."""
    before, whole = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, prompt + new.tolist()))
    return whole[len(before) :]


def score_texts(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], bertscore_model: Path | None = None
) -> dict[str, Any]:
    """BLEU, ROUGE and, with the folder of an encoder, BERTScore of texts against one or more references each.

    `bleu`: sacrebleu's score of the whole corpus, 13a tokens, exponential smoothing, from 0 to 100, with its
    `bleu_signature`. `rouge1`, `rouge2`, `rougeL`: F-measures of rouge-score with its stemmer, against the best
    reference of each text, mean over texts, from 0 to 1. `bertscore_f1`: mean over texts; None, with a reason under
    `null_reasons`, without an encoder. Encoders are never downloaded.

    Raises:
        DataError: no texts, another number of lists of references, or a text without any.
        InputError: `bertscore_model` holds no usable encoder, or the package bert-score is missing.
    """
    _check(hypotheses, references)
    bertscore = None if bertscore_model is None else _bertscore(hypotheses, references, bertscore_model)
    return {
        **_bleu(hypotheses, references),
        **_rouge(hypotheses, references),
        "bertscore_f1": bertscore,
        "null_reasons": {"bertscore_f1": NO_ENCODER} if bertscore is None else {},
    }


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not hypotheses:
        raise DataError("no texts to score; give at least one prompt with its references")
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} texts and references for {len(references)}; give a list for each text")
    for number, own in enumerate(references, start=1):
        if isinstance(own, str) or not own:
            raise DataError(f"text {number} has no list of references; give at least one for each text")


def _bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    from sacrebleu import BLEU

    bleu = BLEU(tokenize="13a", smooth_method="exp")
    most = max(map(len, references))
    columns = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    score = bleu.corpus_score(list(hypotheses), columns).score  # type: ignore[arg-type]  # None: fewer references
    return {"bleu": score, "bleu_signature": str(bleu.get_signature())}


def _rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=True)
    found = [scorer.score_multi(list(own), text) for text, own in zip(hypotheses, references, strict=True)]
    return {name: fmean(scores[name].fmeasure for scores in found) for name in ROUGE}


def _bertscore(hypotheses: Sequence[str], references: Sequence[Sequence[str]], folder: Path) -> float:
    """Mean F1 with the encoder's last layer; an empty text scores 0."""
    n_layers = encoder_layers(folder)
    try:
        from bert_score import score  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise InputError("BERTScore needs a further package; install it: pip install bert-score") from error
    written = [(text, list(own)) for text, own in zip(hypotheses, references, strict=True) if text.strip()]
    if not written:
        return 0.0
    texts, own = zip(*written, strict=True)
    _, _, f1 = score(list(texts), list(own), model_type=str(folder), num_layers=n_layers)
    return f1.double().sum().item() / len(hypotheses)


def encoder_layers(folder: Path) -> int:
    """The number of layers of the encoder for BERTScore. Raises InputError for an unusable encoder.

    bert-score loads it again, without a check of its weights.
    """
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise InputError(f"bertscore_model={folder} is no folder of an encoder; it needs config.json and the weights")
    try:
        tokenizer = load_tokenizer(str(folder))
        encoder, lacking, others = load_weights(AutoModel, str(folder), "float32", False)
        refuse_lacking(str(folder), {name for name in lacking | others if not name.startswith("pooler.")})  # not used
    except InputError as error:
        raise InputError(f"bertscore_model={folder} cannot be used: {error}") from error
    if tokenizer.model_max_length > _MAX_LENGTH:
        raise InputError(
            f"the tokenizer of bertscore_model={folder} has no maximum length; set model_max_length in its "
            "tokenizer_config.json, to 512 for most encoders"
        )
    return encoder.config.num_hidden_layers
