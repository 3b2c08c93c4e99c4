"""Texts that a model writes, and how near they come to references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from qpeft.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ROUGE = ("rouge1", "rouge2", "rougeL")
NO_ENCODER = "bertscore: no local encoder given"
_LONGEST = 2**31 - 1  # what the tokenizers library can count to; transformers writes a larger number for "unknown"


def generate_texts(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 8
) -> list[str]:
    """What the model writes behind each prompt: greedily, up to an end of text, without the prompt.

    Prompts of several lengths are padded on the left, so that `batch_size` changes the time taken and not the texts. A
    model with virtual tokens in front, which no padding may part from the text, gets prompts of one length at a time.

    Raises:
        DataError: a prompt has no token, or does not fit into the model's context with `max_new_tokens` behind it.
    """
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    _check_fit(model, prompts, encoded, max_new_tokens)
    texts, end = [""] * len(prompts), cast("int | None", tokenizer.eos_token_id)
    for places in _batches(encoded, batch_size, alike=_has_virtual_tokens(model)):
        rows = [encoded[place] for place in places]
        for place, row, new in zip(places, rows, _write(model, rows, max_new_tokens, end), strict=True):
            texts[place] = _continuation(tokenizer, row, new)
    return texts


def _check_fit(model: Any, prompts: Sequence[str], encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    from qpeft.compare.measurements.inference import has_room

    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids or not has_room(model, len(ids) + max_new_tokens):
            raise DataError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {max_new_tokens} more are to come: it needs at "
                "least one, and all must fit into the model's context; shorten it or lower max_new_tokens"
            )


def _write(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, end: int | None) -> Tensor:
    """Token ids (B, new) behind prompts that are padded on the left."""
    import torch

    from qpeft.compare.measurements.inference import write

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return write(model, ids, mask, end, max_new_tokens=max_new_tokens)


def _has_virtual_tokens(model: Any) -> bool:
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def _batches(encoded: Sequence[Sequence[int]], batch_size: int, *, alike: bool) -> Iterator[list[int]]:
    """Places of prompts that are written to together: of about one length, or of the very same."""
    places: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place])):
        other = alike and places and len(encoded[places[0]]) != len(encoded[place])
        if len(places) == batch_size or other:
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: Tensor) -> str:
    """The new text alone: decoded with what is before it, for tokens may share a character or a blank."""
    before, whole = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, prompt + new.tolist()))
    return whole[len(before) :]


def score_texts(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], bertscore_model: Path | None = None
) -> dict[str, Any]:
    """BLEU, ROUGE and, with the folder of an encoder, BERTScore of texts against one or more references each.

    `bleu`: sacrebleu's, of the whole corpus, 13a tokens, exponential smoothing, from 0 to 100, with its
    `bleu_signature`. `rouge1`, `rouge2`, `rougeL`: F-measures of rouge-score with its stemmer, against the best of a
    text's references, mean over texts, from 0 to 1. `bertscore_f1`: mean over texts; None without an encoder, which is
    never downloaded. Why a figure is None stands under `null_reasons`.

    Raises:
        DataError: no texts, not as many lists of references, or a text without any.
        InputError: `bertscore_model` holds no usable encoder, or the package that reads it is missing.
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
    """Mean F1 by the encoder's last layer; an empty text scores 0."""
    n_layers = _check_encoder(folder)
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


def _check_encoder(folder: Path) -> int:
    """The encoder's number of layers."""
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise InputError(f"bertscore_model={folder} is no folder of an encoder; it needs config.json and the weights")
    if AutoTokenizer.from_pretrained(str(folder)).model_max_length > _LONGEST:
        raise InputError(
            f"the tokenizer of bertscore_model={folder} does not say how long a text may be; "
            "set model_max_length in its tokenizer_config.json, to 512 for most encoders"
        )
    return AutoConfig.from_pretrained(str(folder)).num_hidden_layers
