"""Scores of generated texts by sacrebleu, rouge-score and bert-score, and all of them at once.

Every score takes n `hypotheses`, the generated texts, and a list of n `references`, each a list of
one or more texts. DataError is raised for other lists, such as a single text or lists of different
lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from qpeft.errors import ConfigError, DataError, InputError

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # one or more of each text
ROUGE = ("rouge1", "rouge2", "rougeL")
# the limit of the tokenizers library; transformers stores a larger number for "unknown"
_MAX_LENGTH = 2**31 - 1


def bleu(hypotheses: Texts, references: References, lowercase: bool = False) -> float:
    """BLEU of `hypotheses` by sacrebleu, from 0 to 100: 13a tokens, exponential smoothing.

    `lowercase` ignores case, as the script of the E2E NLG Challenge does. Raises DataError for
    other `references`.
    """
    return _of_corpus("BLEU", hypotheses, references, lowercase=lowercase, force=True)[0]


def chrf(hypotheses: Texts, references: References) -> float:
    """chrF2 of `hypotheses` by sacrebleu, from 0 to 100; case counts. Raises DataError for other
    `references`.
    """
    return _of_corpus("CHRF", hypotheses, references)[0]


def _of_corpus(
    name: str, hypotheses: Texts, references: References, **options: Any
) -> tuple[float, str]:
    """The score and its signature. Sacrebleu takes the first reference of all texts, the second,
    ..., or None.
    """
    import sacrebleu

    _check(hypotheses, references)
    metric = getattr(sacrebleu, name)(**options)
    columns = list(zip_longest(*references))
    return metric.corpus_score(list(hypotheses), columns).score, str(metric.get_signature())


def rouge(hypotheses: Texts, references: References) -> dict[str, float]:
    """`rouge1`, `rouge2` and `rougeL` by rouge-score, from 0 to 1: F-measures of stems, mean over
    the `hypotheses`.

    Of several `references` the best one of each text counts. Raises DataError for other references.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check(hypotheses, references)
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    of_texts = [
        scorer.score_multi(list(own), text)
        for text, own in zip(hypotheses, references, strict=True)
    ]
    return {name: fmean(scores[name].fmeasure for scores in of_texts) for name in ROUGE}


def bertscore(hypotheses: Texts, references: References, encoder: str | Path) -> float:
    """BERTScore's F1 of `hypotheses` and `references`, by bert-score: the mean; an empty text
    scores 0.

    Made of cosines, it is mostly between 0 and 1. Of the `encoder`, a local folder, the
    last layer counts. Raises ConfigError if there is no such folder, and InputError if the encoder
    cannot be used, or the package bert-score is missing.
    """
    _check(hypotheses, references)
    n_layers = encoder_layers(Path(encoder))
    from bert_score import score  # type: ignore[import-not-found]

    written = [
        (text, list(own)) for text, own in zip(hypotheses, references, strict=True) if text.strip()
    ]
    if not written:
        return 0.0
    texts, own = zip(*written, strict=True)
    _, _, f1 = score(list(texts), list(own), model_type=str(encoder), num_layers=n_layers)
    return f1.double().sum().item() / len(hypotheses)


def encoder_layers(folder: Path) -> int:
    """The number of layers of the encoder for BERTScore.

    Raises ConfigError if there is no such folder, and InputError for an unusable encoder, and if the
    package bert-score is missing.
    """
    from qpeft_lab.base_model import load_config, load_tokenizer

    if not folder.is_dir():
        raise ConfigError(
            f"bertscore_model: no folder {folder}; name the folder of a local encoder"
        )
    if load_tokenizer(str(folder)).model_max_length > _MAX_LENGTH:
        raise InputError(
            f"{folder}/tokenizer_config.json: set model_max_length, to 512 for most encoders"
        )
    if find_spec("bert_score") is None:
        raise InputError("BERTScore needs the package bert-score: pip install 'qpeft[bertscore]'")
    return load_config(str(folder)).num_hidden_layers


def score_texts(
    hypotheses: Texts, references: References, bertscore_model: Path | None = None
) -> dict[str, Any]:
    """All scores of `hypotheses` against one or more `references` each. Raises DataError for other
    references.

    `bleu` with its `bleu_signature`, `bleu_lowercase`, `chrf`, `rouge1`, `rouge2`, `rougeL`; and
    `bertscore_f1` with `bertscore_model`, the folder of an encoder; without one it is None.
    """
    score, signature = _of_corpus("BLEU", hypotheses, references, force=True)
    return {
        "bleu": score,
        "bleu_signature": signature,
        "bleu_lowercase": bleu(hypotheses, references, lowercase=True),
        "chrf": chrf(hypotheses, references),
        **rouge(hypotheses, references),
        "bertscore_f1": (
            None if bertscore_model is None else bertscore(hypotheses, references, bertscore_model)
        ),
    }


def _check(hypotheses: Texts, references: References) -> None:
    """Refuse what is not a list of texts: a single text would be scored letter by letter."""
    has_single_text = any(isinstance(texts, str) for texts in (hypotheses, *references))
    is_complete = hypotheses and all(references) and len(hypotheses) == len(references)
    if has_single_text or not is_complete:
        raise DataError("give a list of texts, and for each text a list of one or more references")
