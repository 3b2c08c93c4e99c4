"""BLEU, chrF and ROUGE of generated texts by their libraries, and all scores of a set of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from qpeft.metrics.encoders import bertscore
from qpeft.metrics.overlap import cider, coco_rouge_l, meteor, nist
from qpeft.metrics.words import References, Texts, check_texts

ROUGE = ("rouge1", "rouge2", "rougeL")
NO_ENCODER = "bertscore: no local encoder given"
NO_METEOR = "meteor: not asked for"
TOO_FEW = "CIDEr needs at least two texts"


def bleu(hypotheses: Texts, references: References, lowercase: bool = False) -> float:
    """BLEU of a corpus by sacrebleu, from 0 to 100: 13a tokens, exponential smoothing.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.
        lowercase: Ignore case, as the script of the E2E NLG Challenge does.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
    """
    return _bleu(hypotheses, references, lowercase)[0]


def _bleu(hypotheses: Texts, references: References, lowercase: bool = False) -> tuple[float, str]:
    """The score and its signature."""
    from sacrebleu import BLEU

    check_texts(hypotheses, references)
    made = BLEU(tokenize="13a", smooth_method="exp", lowercase=lowercase, force=True)
    score = made.corpus_score(list(hypotheses), _columns(references)).score
    return score, str(made.get_signature())


def chrf(hypotheses: Texts, references: References) -> float:
    """chrF2 of a corpus by sacrebleu, from 0 to 100: n-grams of up to 6 characters, case counts.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
    """
    from sacrebleu import CHRF

    check_texts(hypotheses, references)
    return CHRF().corpus_score(list(hypotheses), _columns(references)).score


def _columns(references: References) -> Any:
    """Sacrebleu's form: the first reference of all texts, the second, ...; None where a text has fewer."""
    most = max(map(len, references))
    return [[own[i] if i < len(own) else None for own in references] for i in range(most)]


def rouge(hypotheses: Texts, references: References) -> dict[str, float]:
    """`rouge1`, `rouge2` and `rougeL` by rouge-score, from 0 to 1: F-measures of stems, mean over the texts.

    Of several references the best one of each text counts.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_texts(hypotheses, references)
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    found = [scorer.score_multi(list(own), text) for text, own in zip(hypotheses, references, strict=True)]
    return {name: fmean(scores[name].fmeasure for scores in found) for name in ROUGE}


def score_texts(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    bertscore_model: Path | None = None,
    with_meteor: bool = False,
) -> dict[str, Any]:
    """All scores of generated texts against one or more references each.

    `bleu` with its `bleu_signature`, `chrf`, `rouge1`, `rouge2`, `rougeL`; and, as the script of the E2E NLG Challenge
    computes them, `bleu_lowercase`, `nist`, `rougeL_coco`, `cider` and `meteor`. A score that is not computed is None,
    with its reason under `null_reasons`.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.
        bertscore_model: Folder of an encoder, for `bertscore_f1`; encoders are never downloaded.
        with_meteor: Compute METEOR, which needs Java and the package pycocoevalcap.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
        InputError: METEOR or BERTScore cannot be computed.
    """
    score, signature = _bleu(hypotheses, references)
    has_several = len(hypotheses) > 1
    left_out = {
        "cider": None if has_several else TOO_FEW,
        "meteor": None if with_meteor else NO_METEOR,
        "bertscore_f1": NO_ENCODER if bertscore_model is None else None,
    }
    return {
        "bleu": score,
        "bleu_signature": signature,
        "bleu_lowercase": bleu(hypotheses, references, lowercase=True),
        "nist": nist(hypotheses, references),
        "chrf": chrf(hypotheses, references),
        **rouge(hypotheses, references),
        "rougeL_coco": coco_rouge_l(hypotheses, references),
        "cider": cider(hypotheses, references) if has_several else None,
        "meteor": meteor(hypotheses, references) if with_meteor else None,
        "bertscore_f1": None if bertscore_model is None else bertscore(hypotheses, references, bertscore_model),
        "null_reasons": {name: reason for name, reason in left_out.items() if reason is not None},
    }
