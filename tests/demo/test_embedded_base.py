import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft.demo
from qpeft.demo import corpus
from qpeft.errors import CheckpointError
from qpeft.files import file_hash
from qpeft.training.blocks import cut
from qpeft.training.metrics import evaluate_language_model

HELD_OUT = {
    "stdlib_validation": lambda: corpus.split(corpus.stdlib_docs()).validation,
    "numpy_test": lambda: corpus.split(corpus.numpy_docs()).test,
}


@pytest.fixture(scope="module")
def base() -> Path:
    return qpeft.demo.base_path()


@pytest.fixture(scope="module")
def training(base) -> dict:
    return json.loads((base / "training.json").read_text())


@pytest.fixture(scope="module")
def model(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def test_base_is_small_and_stored_as_float16(base, training):
    with safe_open(base / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
        n = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert 1_400_000 <= n <= 2_000_000
    assert n == training["n_parameters"]
    assert sum(path.stat().st_size for path in base.iterdir()) < 4_000_000


def test_base_has_a_tied_head_and_no_dropout(model, training):
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.num_parameters() == training["n_parameters"]
    assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0.0


@pytest.mark.long
@pytest.mark.parametrize("name", HELD_OUT)
def test_base_has_the_scores_of_its_card(name, model, tokenizer, training):
    docs, card = HELD_OUT[name](), training["scores"][name]
    same_text = corpus.digest(docs) == card["sha256"]  # else another version of Python or NumPy
    result = evaluate_language_model(model, cut([{"text": text} for text in docs], 256, tokenizer))
    assert result.loss == pytest.approx(card["loss"], abs=1e-3 if same_text else 0.3)
    assert result.loss < 0.7 * math.log(model.config.vocab_size)


def test_card_has_the_measured_scores(base, training):
    card = (base / "README.md").read_text(encoding="utf-8")
    for score in training["scores"].values():
        assert f"| {score['loss']:.3f} | {score['perplexity']:.1f} | {score['bits_per_byte']:.3f} |" in card


def test_weights_have_not_changed(base):
    assert file_hash(base / "model.safetensors") == "e328fe37f9f0c89a736591b3e2e006c9affdb6b2df643b3cf63f9daef291e811"


def test_special_tokens_have_their_ids(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 0, 1)
    assert tokenizer("a<|endoftext|>b")["input_ids"].count(0) == 1


@given(text=st.text())
@example(text="  def f(x):\n\t\treturn 'ß€😀'\r\n\n   ")
@example(text=" ,' .n't !")
@example(text="<|endoftext|><|pad|>")
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_missing_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    monkeypatch.setattr(qpeft.demo, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors, tokenizer\.json") as error:
        qpeft.demo.base_path()
    assert "reinstall qpeft" in str(error.value)


def test_base_path_is_inside_the_package(base):
    assert Path(qpeft.demo.__file__).parent == base.parent
