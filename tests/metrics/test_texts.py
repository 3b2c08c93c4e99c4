"""Scores of texts: those of the libraries' command lines and of the E2E challenge's script, and hand-computed ones."""

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from sacrebleu import BLEU, CHRF
from safetensors.torch import load_file, save_file

from qpeft.errors import ConfigError, DataError, InputError
from qpeft.metrics import bertscore, bleu, chrf, cider, coco_rouge_l, meteor, nist, rouge, score_texts
from qpeft.metrics.texts import NO_ENCODER, NO_METEOR
from qpeft.metrics.words import caption_words

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
        "Close to Café Adriatic, The Vaults pub serves food at a high price and has a 5 star rating.",
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
    ["Blue Spice is a coffee shop in the city centre.", "A coffee shop in the city centre is called Blue Spice."],
]
ROUGE = ("rouge1", "rouge2", "rougeL")

# by the script of the E2E NLG Challenge, github.com/tuetschek/e2e-metrics, measure_scores.py -p; its BLEU times 100
E2E_SCRIPT = {"bleu_lowercase": 41.309417, "nist": 4.205259, "rougeL_coco": 0.621364, "cider": 3.012653}
E2E_METEOR = 0.408964


def test_scores_equal_those_of_the_e2e_script():
    found = score_texts(TEXTS, REFERENCES)
    assert {name: found[name] for name in E2E_SCRIPT} == pytest.approx(E2E_SCRIPT, abs=1e-6)
    assert found["meteor"] is None
    assert found["null_reasons"] == {"meteor": NO_METEOR, "bertscore_f1": NO_ENCODER}


def test_meteor_equals_that_of_the_e2e_script():
    pytest.importorskip("pycocoevalcap", reason="METEOR is an extra: pip install 'qpeft[meteor]'")
    if shutil.which("java") is None:
        pytest.skip("METEOR needs Java")
    assert meteor(TEXTS, REFERENCES) == pytest.approx(E2E_METEOR, abs=1e-6)


def test_meteor_without_its_package_or_java_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qpeft.metrics.overlap.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'qpeft\[meteor\]'"):
        meteor(TEXTS, REFERENCES)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("qpeft.metrics.overlap.find_spec", lambda name: sys.modules["json"].__spec__)
    with pytest.raises(ConfigError, match="there is no Java"):
        meteor(TEXTS, REFERENCES)


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("options", "is_lower"), [((), False), (("--lowercase",), True)])
def test_bleu_and_chrf_equal_those_of_sacrebleus_command(tmp_path, options, is_lower):
    files = [lines(tmp_path / f"{i}.txt", [own[i] if i < len(own) else "" for own in REFERENCES]) for i in range(3)]
    texts = lines(tmp_path / "texts.txt", TEXTS)
    shown = run("sacrebleu", *files, "-i", texts, "-m", "bleu", "chrf", "-b", "-w", 8, "-f", "text", *options)
    mine = (bleu(TEXTS, REFERENCES, lowercase=is_lower), chrf(TEXTS, REFERENCES))
    assert mine == pytest.approx([float(line) for line in shown.split()], abs=1e-7)


def test_rouge_equals_that_of_its_command(tmp_path):
    """The command knows one reference of each text; the best of several is the highest F-measure."""
    scores = []
    for i in range(2):
        targets = lines(tmp_path / f"{i}.txt", [own[i % len(own)] for own in REFERENCES])
        texts, out = lines(tmp_path / "texts.txt", TEXTS), tmp_path / f"{i}.csv"
        files = (f"--target_filepattern={targets}", f"--prediction_filepattern={texts}", f"--output_filename={out}")
        run("rouge_score.rouge", *files, "--use_stemmer", "--noaggregate")
        scores.append(
            [[float(row[f"{name}-F"]) for name in ROUGE] for row in csv.DictReader(out.read_text().splitlines())]
        )
    two = [[own[0], own[1 % len(own)]] for own in REFERENCES]
    best = [[max(both) for both in zip(*rows, strict=True)] for rows in zip(*scores, strict=True)]
    expected = dict(zip(ROUGE, map(fmean, zip(*best, strict=True)), strict=True))
    assert rouge(TEXTS, two) == pytest.approx(expected, abs=1e-6)


def plain_cider(texts, references):
    """CIDEr-D from equations 1 to 4 of the paper and its section on CIDEr-D, vectors written out in full."""
    import numpy as np

    def grams(text, n):
        words = caption_words(text)
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = []
    for text, own in zip(texts, references, strict=True):
        of_text = []
        for n in range(1, 5):
            vocabulary = sorted({g for some in (texts, *references) for one in some for g in grams(one, n)})
            idf = np.array(
                [math.log(len(texts) / max(1, sum(any(g in grams(r, n) for r in o) for o in references)))
                 for g in vocabulary]
            )  # fmt: skip
            vector = np.array([grams(text, n).count(g) for g in vocabulary]) * idf
            for one in own:
                other = np.array([grams(one, n).count(g) for g in vocabulary]) * idf
                norms = np.linalg.norm(vector) * np.linalg.norm(other)
                gap = len(caption_words(text)) - len(caption_words(one))
                cosine = np.minimum(vector, other) @ other / norms if norms else 0.0
                of_text.append(10 * cosine * math.exp(-(gap**2) / 72))
        total.append(fmean(of_text))
    return fmean(total)


def test_cider_equals_a_plain_computation():
    assert cider(TEXTS, REFERENCES) == pytest.approx(plain_cider(TEXTS, REFERENCES), rel=1e-12)
    other = [*TEXTS[1:], TEXTS[0]]
    assert cider(other, REFERENCES) == pytest.approx(plain_cider(other, REFERENCES), rel=1e-12)


def test_cider_of_hand_computed_examples():
    assert cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx(10)
    assert cider(["a b", "c d"], [["a b"], ["c d"]]) == pytest.approx(5)  # no 3-grams and 4-grams
    # weights log 2: 1-grams min(2, 1) 1 + 1 of 5**.5 2**.5, 2-grams 1 of 2**.5 1**.5; the lengths differ by 1
    expected = 10 / 4 * (2 / 10**0.5 + 1 / 2**0.5) * math.exp(-1 / 72)
    assert cider(["a b a", "x"], [["a b"], ["y"]]) == pytest.approx(expected / 2)
    with pytest.raises(DataError, match="at least two texts"):
        cider(["a"], [["a"]])
    assert score_texts(["a"], [["a"]])["null_reasons"]["cider"] == "CIDEr needs at least two texts"


def test_nist_of_hand_computed_examples():
    # references a b, a c: information a log2(4/2), b and c log2(4/1), a b log2(2/1)
    assert nist(["a b"], [["a b", "a c"]]) == pytest.approx((1 + 2) / 2 + 1)
    assert nist(["a"], [["a b", "a c"]]) == pytest.approx(math.exp(math.log(0.5) * (math.log(2) / math.log(1.5)) ** 2))
    assert nist([""], [["a b"]]) == 0


def test_nist_with_one_reference_equals_that_of_nltk():
    """NLTK's takes the best of several references, and mteval-v13a.pl all of them."""
    from nltk.translate.nist_score import corpus_nist

    from qpeft.metrics.words import translation_words

    words = [translation_words(text) for text in TEXTS]
    expected = corpus_nist([[translation_words(own[0])] for own in REFERENCES], words)
    assert nist(TEXTS, [own[:1] for own in REFERENCES]) == pytest.approx(expected)


def test_coco_rouge_l_of_a_hand_computed_example():
    # common: the cat on mat (4 of 6 words), a mat (2 of 3); precision 4/6 from the first, recall 2/3 from the second
    found = coco_rouge_l(["the cat is on a mat"], [["the cat sat quietly on the big mat", "a, mat. There!"]])
    precision, recall = 4 / 6, 2 / 3
    assert found == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))


def test_caption_words_are_those_of_the_penn_treebank():
    text = "It's family-friendly, isn't it? It costs £20-25 (or 3.50)... Wow!"
    expected = "it 's family-friendly is n't it it costs £ 20-25 or 3.50 wow"
    assert " ".join(caption_words(text)) == expected


def test_example_of_the_specification():
    found = score_texts(HYPOTHESES, SINGLE)
    assert found["bleu"] == pytest.approx(29.256127, abs=1e-6)
    assert found["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["rouge1"] == pytest.approx(0.878205, abs=1e-6)
    assert found["rouge2"] == pytest.approx(0.572727, abs=1e-6)
    assert found["rougeL"] == pytest.approx(0.801282, abs=1e-6)
    assert found["bertscore_f1"] is None
    assert found["null_reasons"]["bertscore_f1"] == NO_ENCODER


def test_best_of_several_references_counts():
    several = [["nothing alike", SINGLE[0][0]], SINGLE[1]]
    one, more = score_texts(HYPOTHESES, SINGLE), score_texts(HYPOTHESES, several)
    assert [more[name] for name in ("rouge1", "rouge2", "rougeL")] == [
        one[name] for name in ("rouge1", "rouge2", "rougeL")
    ]
    assert more["bleu"] == pytest.approx(one["bleu"])
    assert more["bleu_signature"].startswith("nrefs:var|")


def test_text_equal_to_its_reference_has_full_scores():
    found = score_texts(["a b c d e"], [["x", "a b c d e"]])
    assert (found["bleu"], found["rouge1"], found["rougeL"]) == (pytest.approx(100), 1.0, 1.0)


def test_empty_text_scores_zero():
    found = score_texts(["", ""], SINGLE)
    assert (found["bleu"], found["rouge1"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("texts", "references", "told"),
    [
        ([], [], "no texts to score"),
        (["a"], [["a"], ["b"]], "1 texts and references for 2"),
        (["a", "b"], [["a"], []], "text 2 has no list of references"),
        (["a"], ["a"], "text 1 has no list of references"),
        ("ab", [["a"], ["b"]], "hypotheses must be a list of texts, got str"),
        ({"a"}, [["a"]], "hypotheses must be a list of texts, got set"),
        (["a", None], [["a"], ["b"]], "hypotheses must be a list of texts, got one with NoneType"),
        (["a"], "a", "references must be a list of lists of texts, got str"),
        (["a"], {0: ["a"]}, "references must be a list of lists of texts, got dict"),
        (["a"], [{"a"}], "the references of text 1 must be a list of texts, got set"),
        (["a"], [[1]], "the references of text 1 must be a list of texts, got one with int"),
    ],
)
def test_invalid_input_raises(texts, references, told):
    with pytest.raises(DataError, match=told):
        score_texts(texts, references)


@pytest.mark.parametrize("score", [bleu, chrf, nist, rouge, coco_rouge_l, cider, meteor])
def test_every_score_refuses_a_single_text(score):
    with pytest.raises(DataError, match="hypotheses must be a list of texts, got str"):
        score("ab", [["a"], ["b"]])


def test_empty_reference_scores_zero():
    found = score_texts(["a"], [[""]])
    assert found["bleu"] == BLEU(force=True).corpus_score(["a"], [[""]]).score == 0.0
    assert found["chrf"] == CHRF().corpus_score(["a"], [[""]]).score
    assert (found["nist"], found["rouge1"], found["rougeL_coco"]) == (0.0, 0.0, 0.0)


def test_missing_encoder_raises(tmp_path: Path):
    with pytest.raises(InputError, match=r"is no folder of an encoder"):
        score_texts(HYPOTHESES, SINGLE, tmp_path)


@pytest.fixture
def encoder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A copy whose tokenizer says how long a text may be."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 32}))
    return folder


def test_encoder_without_maximum_length_raises(tiny_encoder: Path):
    with pytest.raises(InputError, match="set model_max_length"):
        score_texts(HYPOTHESES, SINGLE, tiny_encoder)


def test_encoder_that_lacks_a_weight_raises(encoder: Path):
    weights = load_file(encoder / "model.safetensors")
    lacking = next(name for name in weights if "attention" in name)
    save_file({name: weight for name, weight in weights.items() if name != lacking}, encoder / "model.safetensors")
    with pytest.raises(InputError, match="no weights of the right shape for 1 of its tensors"):
        score_texts(HYPOTHESES, SINGLE, encoder)


def test_encoder_with_own_code_raises(encoder: Path):
    config = json.loads((encoder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (encoder / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(InputError, match="needs Python code from its folder or repository"):
        score_texts(HYPOTHESES, SINGLE, encoder)


def test_missing_package_is_named(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(InputError, match=r"pip install 'qpeft\[bertscore\]'"):
        score_texts(HYPOTHESES, SINGLE, encoder)


def test_bertscore_equals_that_of_its_command(encoder: Path, tmp_path):
    pytest.importorskip("bert_score", reason="BERTScore is an extra: pip install bert-score")
    n_layers = json.loads((encoder / "config.json").read_text())["num_hidden_layers"]
    texts, references = ["the king sings", "a bird"], [["a fox sings", "the king"], ["the bird", "night"]]
    files = [lines(tmp_path / f"{i}.txt", [own[i] for own in references]) for i in range(2)]
    candidates = lines(tmp_path / "texts.txt", texts)
    shown = run("bert_score_cli.score", "-r", *files, "-c", candidates, "-m", encoder, "-l", n_layers, "--nthreads", 0)
    f1 = float(shown.rpartition("F1:")[2].split()[0])
    assert bertscore(texts, references, encoder) == pytest.approx(f1, abs=1e-6)


def test_bertscore_with_a_local_encoder(encoder: Path):
    pytest.importorskip("bert_score", reason="BERTScore is an extra: pip install bert-score")
    other, same, best, half = (
        score_texts(texts, references, encoder)
        for texts, references in (
            (["the king sings", "a bird"], [["a fox went into the wood"], ["the bird"]]),
            (["the king sings", "a bird"], [["the king sings"], ["a bird"]]),
            (["the king sings", "a bird"], [["a fox", "the king sings"], ["a bird", "night"]]),
            (["the king sings", " "], [["the king sings"], ["a bird"]]),
        )
    )
    assert "bertscore_f1" not in other["null_reasons"]
    assert other["bertscore_f1"] < 0.99
    assert same["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert best["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert half["bertscore_f1"] == pytest.approx(0.5, abs=1e-5)  # an empty text scores 0
    assert score_texts([""], [["a bird"]], encoder)["bertscore_f1"] == 0
