"""Texts that a model writes, and how near they come to references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qpeft.errors import DataError, InputError

if TYPE_CHECKING:
    pass

ROUGE = ("rouge1", "rouge2", "rougeL")
NO_ENCODER = "bertscore: no local encoder given"


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
        InputError: there is no encoder in `bertscore_model`, or the package that reads it is missing.
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
    if not (folder / "config.json").is_file():
        raise InputError(f"bertscore_model={folder} is no folder of an encoder; it needs config.json and the weights")
    try:
        from bert_score import score  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise InputError('BERTScore needs a further package; install it: pip install "qpeft[bertscore]"') from error
    from transformers import AutoConfig

    n_layers = AutoConfig.from_pretrained(str(folder)).num_hidden_layers
    own = [list(texts) for texts in references]
    _, _, f1 = score(list(hypotheses), own, model_type=str(folder), num_layers=n_layers)
    return f1.double().mean().item()
