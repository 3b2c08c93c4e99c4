"""Scores of texts are those of the libraries' command lines."""

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from folders import edit_json
from rouge_score.rouge_scorer import RougeScorer

from qpeft.errors import DataError, InputError
from qpeft.files import read_json
from qpeft_lab.metrics import bertscore, bleu, chrf, rouge, score_texts

HYPOTHESES = ["the cat sat on the mat", "there is a dog in the garden"]
SINGLE = [["the cat is on the mat"], ["a dog is in the garden"]]
TEXTS = [
    "The Vaults is a cheap family-friendly pub near Café Adriatic, with a 5 star rating.",
    "Wildwood isn't family friendly; it serves English food for £20-25.",
    "Cotto is an inexpensive coffee shop.",
    "There is a place in the city centre called Alimentum. It's not family-friendly.",
    "BLUE SPICE is a riverside pub.",
]
REFERENCES = [
    [
        "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
        (
            "Close to Café Adriatic, The Vaults pub serves food at a high price and has a 5 star"
            " rating."
        ),
    ],
    ["Wildwood serves English food, costs £20-25, and isn't family friendly."],
    [
        "Cotto is an inexpensive English restaurant near The Portland Arms.",
        "Cotto is a cheap coffee shop.",
        "In the city centre near The Portland Arms there is a coffee shop called Cotto.",
    ],
    [
        "There is a place in the city centre, Alimentum, that is not family-friendly.",
        "In the city centre there is a venue named Alimentum; this is not a family-friendly venue.",
    ],
    [
        "Blue Spice is a coffee shop in the city centre.",
        "A coffee shop in the city centre is called Blue Spice.",
    ],
]
ROUGE = ("rouge1", "rouge2", "rougeL")


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("options, is_lower", [((), False), (("--lowercase",), True)])
def test_bleu_and_chrf_equal_those_of_sacrebleus_command(tmp_path, options, is_lower):
    files = [
        lines(tmp_path / f"{i}.txt", [own[i] if i < len(own) else "" for own in REFERENCES])
        for i in range(3)
    ]
    texts = lines(tmp_path / "texts.txt", TEXTS)
    shown = run(
        "sacrebleu",
        *files,
        "-i",
        texts,
        "-m",
        "bleu",
        "chrf",
        "-b",
        "-w",
        8,
        "-f",
        "text",
        *options,
    )
    mine = (bleu(TEXTS, REFERENCES, lowercase=is_lower), chrf(TEXTS, REFERENCES))

    assert (
        "case:mixed|eff:no|tok:13a|smooth:exp" in score_texts(TEXTS, REFERENCES)["bleu_signature"]
    )
    assert mine == pytest.approx([float(line) for line in shown.split()], abs=1e-7)


def test_rouge_is_the_mean_of_the_best_references():
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    pairs = zip(TEXTS, REFERENCES, strict=True)
    scores = [[scorer.score(reference, text) for reference in own] for text, own in pairs]
    best = {name: fmean(max(one[name].fmeasure for one in own) for own in scores) for name in ROUGE}
    assert rouge(TEXTS, REFERENCES) == pytest.approx(best)


@pytest.mark.parametrize(
    "texts, references",
    [
        ([], []),
        (["a"], [["a"], ["b"]]),
        (["a", "b"], [["a"], []]),
        (["a"], ["a"]),
        ("ab", [["a"], ["b"]]),
    ],
)
def test_bad_texts_are_refused(texts, references):
    for score in (bleu, chrf, rouge, score_texts):
        with pytest.raises(DataError):
            score(texts, references)


@pytest.fixture
def encoder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A copy whose tokenizer says how long a text may be."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    edit_json(folder / "tokenizer_config.json", model_max_length=32)
    return folder


def test_unusable_encoder_is_refused(
    encoder: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    for folder, named in (
        (tmp_path, "tokenizer"),
        (tiny_encoder, "model_max_length"),
        (encoder, "bert-score"),
    ):
        with pytest.raises(InputError, match=named):
            score_texts(HYPOTHESES, SINGLE, folder)


def test_bertscore_equals_that_of_its_command(encoder: Path, tmp_path):
    pytest.importorskip("bert_score", reason="BERTScore is an extra: pip install bert-score")
    n_layers = read_json(encoder / "config.json")["num_hidden_layers"]
    texts = ["the king sings", "a bird"]
    references = [
        ["a fox sings", "the king"],
        ["the bird", "night"],
    ]
    files = [lines(tmp_path / f"{i}.txt", [own[i] for own in references]) for i in range(2)]
    candidates = lines(tmp_path / "texts.txt", texts)
    shown = run(
        "bert_score_cli.score",
        "-r",
        *files,
        "-c",
        candidates,
        "-m",
        encoder,
        "-l",
        n_layers,
        "--nthreads",
        0,
    )
    f1 = float(shown.rpartition("F1:")[2].split()[0])

    assert bertscore(texts, references, encoder) == pytest.approx(f1, abs=1e-6)

    one, none = (
        score_texts(texts, [["the king sings"]] * 2, encoder)
        for texts in (["the king sings", " "], ["", ""])
    )
    assert one["bertscore_f1"] == pytest.approx(0.5, abs=1e-5)  # an empty text scores 0
    assert none["bertscore_f1"] == 0
