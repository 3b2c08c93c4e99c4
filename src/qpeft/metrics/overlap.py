"""Scores of the E2E NLG Challenge that no maintained library computes: NIST, COCO's ROUGE-L, CIDEr-D, METEOR."""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import fmean

from qpeft.errors import ConfigError, DataError
from qpeft.metrics.words import Ngram, References, Texts, caption_words, check_texts, ngrams, translation_words

_NIST_LENGTHS = range(1, 6)  # of n-grams
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2  # two thirds of the references' length halve the score
_CIDER_LENGTHS = range(1, 5)
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2


def nist(hypotheses: Texts, references: References) -> float:
    """NIST (Doddington 2002) of a corpus: n-grams of up to 5 words, weighted by their information; case is ignored.

    An n-gram matches as often as it occurs in any one of a text's references, and the length is compared with the mean
    length of the references, as in NIST's mteval-v13a.pl.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
    """
    check_texts(hypotheses, references)
    texts = [translation_words(text) for text in hypotheses]
    known = [[translation_words(one) for one in own] for own in references]
    counts: Counter[Ngram] = Counter({(): sum(map(len, chain.from_iterable(known)))})
    for n in _NIST_LENGTHS:
        for own in chain.from_iterable(known):
            counts.update(ngrams(own, n))
    score = 0.0
    for n in _NIST_LENGTHS:
        found = [ngrams(text, n) for text in texts]
        matches = [mine & _most(own, n) for mine, own in zip(found, known, strict=True)]
        information = sum(
            times * math.log2(counts[ngram[:-1]] / counts[ngram]) for some in matches for ngram, times in some.items()
        )
        score += information / max(sum(map(Counter.total, found)), 1)
    if not score:  # all references may be empty
        return 0.0
    ratio = sum(map(len, texts)) / sum(fmean(map(len, own)) for own in known)
    return score * math.exp(_NIST_BETA * math.log(ratio) ** 2) if 0 < ratio < 1 else score


def _most(texts: Sequence[Sequence[str]], n: int) -> Counter[Ngram]:
    """How often each n-gram occurs in the text that has it most often."""
    found: Counter[Ngram] = Counter()
    for text in texts:
        found |= ngrams(text, n)
    return found


def coco_rouge_l(hypotheses: Texts, references: References) -> float:
    """ROUGE-L of the COCO caption evaluation, from 0 to 1: longest common subsequence of words, mean over the texts.

    The F-measure has beta 1.2, from the best precision and the best recall among the references of a text. The ROUGE-L
    of `rouge` has beta 1, stems, and one reference for both.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
    """
    check_texts(hypotheses, references)
    scores = []
    for text, own in zip(hypotheses, references, strict=True):
        words, known = caption_words(text), [caption_words(one) for one in own]
        common = [_common(words, one) for one in known]
        precision = max(common) / max(len(words), 1)
        recall = max(n / max(len(one), 1) for n, one in zip(common, known, strict=True))
        total = recall + _ROUGE_BETA**2 * precision
        scores.append((1 + _ROUGE_BETA**2) * precision * recall / total if total else 0.0)
    return fmean(scores)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, own in enumerate(other):
            row.append(lengths[place] + 1 if word == own else max(lengths[place + 1], row[-1]))
        lengths = row
    return lengths[-1]


def cider(hypotheses: Texts, references: References) -> float:
    """CIDEr-D (Vedantam et al. 2015) of a corpus, on the scale of the COCO caption evaluation, from 0 to 10.

    Mean over the texts, their references and n = 1 to 4 of 10 times the cosine of the TF-IDF vectors of n-grams, in
    which an n-gram counts at most as often as in the reference, times exp(-(difference of lengths)^2 / 72). A document
    of the IDF is all references of a text. Words are in lower case and not stemmed.

    Args:
        hypotheses: The texts to score, at least two.
        references: One or more references of each text.

    Raises:
        DataError: no list of two or more texts, another number of lists of references, or a text without any.
    """
    check_texts(hypotheses, references)
    if len(hypotheses) < 2:
        raise DataError("CIDEr needs at least two texts: its weights compare their references")
    known = [[caption_words(one) for one in own] for own in references]
    documents = [{g for one in own for n in _CIDER_LENGTHS for g in ngrams(one, n)} for own in known]
    frequency = Counter(chain.from_iterable(documents))
    rarity = {ngram: math.log(len(documents) / times) for ngram, times in frequency.items()}
    scores = []
    for text, own in zip(map(caption_words, hypotheses), known, strict=True):
        scores.append(fmean(_consensus(text, one, rarity, math.log(len(documents))) for one in own))
    return 10 * fmean(scores)


def _consensus(text: Sequence[str], reference: Sequence[str], rarity: Mapping[Ngram, float], unknown: float) -> float:
    """The mean over n of the cosines of two texts; `unknown` is the rarity of an n-gram in no reference."""
    cosines = []
    for n in _CIDER_LENGTHS:
        mine, other = (
            {g: times * rarity.get(g, unknown) for g, times in ngrams(words, n).items()} for words in (text, reference)
        )
        product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in mine.items() if ngram in other)
        norm = math.hypot(*mine.values()) * math.hypot(*other.values())
        cosines.append(product / norm if norm else 0.0)
    return fmean(cosines) * math.exp(-((len(text) - len(reference)) ** 2) / (2 * _CIDER_SIGMA**2))


def meteor(hypotheses: Texts, references: References) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) for English, from 0 to 1, by its Java program.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
        ConfigError: the package pycocoevalcap, which contains the program, or Java is missing.
    """
    check_texts(hypotheses, references)
    program = meteor_program()
    lines = [
        " ||| ".join(["SCORE", *(" ".join(caption_words(one)) for one in (*own, text))])
        for text, own in zip(hypotheses, references, strict=True)
    ]
    statistics = _answers(program, lines)
    return float(_answers(program, [" ||| ".join(["EVAL", *statistics])])[-1])  # the last one is that of the corpus


def meteor_program() -> Path:
    """METEOR's Java program. Raises ConfigError if the package that contains it, or Java, is missing."""
    found = find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "METEOR needs the package pycocoevalcap (104 MB) and Java: pip install 'qpeft[meteor]', and install Java"
        )
    program = Path(next(iter(found.submodule_search_locations))) / "meteor" / "meteor-1.5.jar"
    try:
        subprocess.run(["java", "-version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError("METEOR is a Java program, and there is no Java; install it, for example OpenJDK") from error
    return program


def _answers(program: Path, lines: Sequence[str]) -> list[str]:
    command = ["java", "-Xmx2G", "-jar", str(program), "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        ended = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"METEOR's Java program failed: {(error.stderr or '').strip()[-300:]}") from error
    return ended.stdout.splitlines()
