"""BLEU, ROUGE, BERTScore: the specification's example, several references, invalid input."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qpeft.compare.measurements.generation import NO_ENCODER, score_texts
from qpeft.errors import DataError, InputError

HYPOTHESES = ["the cat sat on the mat", "there is a dog in the garden"]
REFERENCES = [["the cat is on the mat"], ["a dog is in the garden"]]


def test_example_of_the_specification():
    found = score_texts(HYPOTHESES, REFERENCES)
    assert found["bleu"] == pytest.approx(29.256127, abs=1e-6)
    assert found["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["rouge1"] == pytest.approx(0.878205, abs=1e-6)
    assert found["rouge2"] == pytest.approx(0.572727, abs=1e-6)
    assert found["rougeL"] == pytest.approx(0.801282, abs=1e-6)
    assert found["bertscore_f1"] is None
    assert found["null_reasons"] == {"bertscore_f1": NO_ENCODER}


def test_best_of_several_references_counts():
    several = [["nothing alike", REFERENCES[0][0]], REFERENCES[1]]
    one, more = score_texts(HYPOTHESES, REFERENCES), score_texts(HYPOTHESES, several)
    assert [more[name] for name in ("rouge1", "rouge2", "rougeL")] == [
        one[name] for name in ("rouge1", "rouge2", "rougeL")
    ]
    assert more["bleu"] == pytest.approx(one["bleu"])
    assert more["bleu_signature"].startswith("nrefs:var|")


def test_text_equal_to_its_reference_has_full_scores():
    found = score_texts(["a b c d e"], [["x", "a b c d e"]])
    assert (found["bleu"], found["rouge1"], found["rougeL"]) == (pytest.approx(100), 1.0, 1.0)


def test_empty_text_scores_zero():
    found = score_texts(["", ""], REFERENCES)
    assert (found["bleu"], found["rouge1"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("texts", "references", "told"),
    [
        ([], [], "no texts to score"),
        (["a"], [["a"], ["b"]], "1 texts and references for 2"),
        (["a", "b"], [["a"], []], "text 2 has no list of references"),
        (["a"], ["a"], "text 1 has no list of references"),
    ],
)
def test_invalid_input_raises(texts, references, told):
    with pytest.raises(DataError, match=told):
        score_texts(texts, references)


def test_missing_encoder_raises(tmp_path: Path):
    with pytest.raises(InputError, match=r"is no folder of an encoder"):
        score_texts(HYPOTHESES, REFERENCES, tmp_path)


@pytest.fixture
def encoder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A copy whose tokenizer says how long a text may be."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 32}))
    return folder


def test_encoder_without_maximum_length_raises(tiny_encoder: Path):
    with pytest.raises(InputError, match="set model_max_length"):
        score_texts(HYPOTHESES, REFERENCES, tiny_encoder)


def test_encoder_that_lacks_a_weight_raises(encoder: Path):
    weights = load_file(encoder / "model.safetensors")
    lacking = next(name for name in weights if "attention" in name)
    save_file({name: weight for name, weight in weights.items() if name != lacking}, encoder / "model.safetensors")
    with pytest.raises(InputError, match="no weights of the right shape for 1 of its tensors"):
        score_texts(HYPOTHESES, REFERENCES, encoder)


def test_encoder_with_own_code_raises(encoder: Path):
    config = json.loads((encoder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (encoder / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(InputError, match="needs Python code from its folder or repository"):
        score_texts(HYPOTHESES, REFERENCES, encoder)


def test_missing_package_is_named(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(InputError, match="pip install bert-score"):
        score_texts(HYPOTHESES, REFERENCES, encoder)


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
    assert other["null_reasons"] == {}
    assert other["bertscore_f1"] < 0.99
    assert same["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert best["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert half["bertscore_f1"] == pytest.approx(0.5, abs=1e-5)  # an empty text scores 0
    assert score_texts([""], [["a bird"]], encoder)["bertscore_f1"] == 0
