"""The embedded base model, and the script that built it, with a tiny recipe."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qpeft.files import file_hash, read_json
from qpeft_lab.base_model import load_model, load_tokenizer
from qpeft_lab.data.text import cut
from qpeft_lab.demo import base_path, corpus
from qpeft_lab.training.score import evaluate_language_model

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "pretrain.py"))
TINY = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "context": 32,
    "vocabulary": 320,
    "passes": 4,
    "batch": 4,
}
DOCS = [
    f"Return the {i}-th {word} of a sequence.\n\nRaise {i}."
    for i in range(60)
    for word in ("item", "line")
]
OTHER = [f"Array number {i}" for i in range(60)]
HELD_OUT = {
    "stdlib_validation": lambda: SCRIPT["split"](corpus.stdlib_docs()).validation,
    "numpy_test": lambda: SCRIPT["split"](corpus.numpy_docs()).test,
}


@pytest.mark.long
@pytest.mark.parametrize("name", HELD_OUT)
def test_base_has_the_scores_of_its_card(name):
    docs = HELD_OUT[name]()
    base = base_path()
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(base)
    card = read_json(base / "training.json")["scores"][name]
    same_text = SCRIPT["digest"](docs) == card["sha256"]  # else another version of Python or NumPy
    result = evaluate_language_model(model, cut([{"text": text} for text in docs], 256, tokenizer))

    assert result.loss == pytest.approx(card["loss"], abs=1e-3 if same_text else 0.3)
    assert result.loss < 0.7 * math.log(model.config.vocab_size)


DIGESTS = {
    "model.safetensors": "e328fe37f9f0c89a736591b3e2e006c9affdb6b2df643b3cf63f9daef291e811",
    "tokenizer.json": "fd4f71763e822face5c5890efacf62221f80110dec3c39bfa1f0109fb00b87e3",
}


def test_base_has_not_changed():
    assert {name: file_hash(base_path() / name) for name in DIGESTS} == DIGESTS


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_built_model_has_learned_and_is_loaded_without_dropout(tmp_path, architecture):
    built = tmp_path / "base"
    SCRIPT["build"](built, SCRIPT["Recipe"](architecture, **TINY), {"stdlib": DOCS, "numpy": OTHER})
    model = load_model(str(built))
    tokenizer = load_tokenizer(str(built))
    config = read_json(built / "config.json")

    assert config["dtype"] == "float16"

    ids = torch.arange(2, 20)[None]
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)
    assert tokenizer.decode(tokenizer(DOCS[3])["input_ids"]) == DOCS[3]

    scores = read_json(built / "training.json")["scores"]
    assert scores["stdlib_test"]["loss"] < math.log(320) - 0.1
    assert model.num_parameters() == read_json(built / "training.json")["n_parameters"]
