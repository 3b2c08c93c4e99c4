"""The base model of a run: complete weights, and a fingerprint of every file that determines the
results.
"""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, llama
from transformers import AutoConfig, AutoModelForCausalLM

from qpeft.errors import InputError
from qpeft_lab.base_model import (
    check_is_causal,
    fingerprint,
    load,
    load_model,
    load_tokenizer,
)
from qpeft_lab.training.classifier import TaskRecord, load_classifier

WEIGHTS = "model.safetensors"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"

pytestmark = pytest.mark.filterwarnings("ignore:the base model has no weights for bert.pooler")


def without(folder, name):
    """Remove the tensors whose name contains `name`."""
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {key: t for key, t in tensors.items() if name not in key},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def other_shape(folder, name):
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {**tensors, name: tensors[name][:-1].clone()}, folder / WEIGHTS, metadata={"format": "pt"}
    )


def cut_off(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-200])


def classifier(folder):
    return load_classifier(
        str(folder), "float32", TaskRecord("text-classification", ("a", "b", "c")), seed=0
    )[0]


@pytest.fixture
def save(tiny_encoder, tmp_path):
    """The folder of a base, saved anew."""

    def make(kind):
        folder = tmp_path / kind
        if kind == "encoder":
            return shutil.copytree(tiny_encoder, folder)
        model = {"gpt2": gpt2, "llama": llama, "classifier": lambda: classifier(tiny_encoder)}[
            kind
        ]()
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    "kind, damage, name",
    [
        ("gpt2", without, "h.0.attn.c_attn.weight"),
        ("gpt2", without, "ln_f.bias"),
        ("gpt2", without, "wte.weight"),
        ("gpt2", other_shape, "transformer.ln_f.weight"),
        ("gpt2", cut_off, WEIGHTS),
        ("gpt2", lambda folder, name: (folder / name).write_text("{}"), "adapter_config.json"),
        ("llama", without, "lm_head.weight"),
        ("encoder", cut_off, "config.json"),
        ("encoder", cut_off, "tokenizer.json"),
        ("encoder", without, QUERY),
        ("encoder", other_shape, QUERY),
        ("classifier", without, "classifier.bias"),
    ],
)
def test_damaged_base_is_refused(save, kind, damage, name):
    folder = save(kind)

    def load():
        if kind == "encoder":
            load_tokenizer(str(folder))
        return classifier(folder) if kind in ("encoder", "classifier") else load_model(str(folder))

    load()
    damage(folder, name)

    with pytest.raises(
        InputError, match="copy or download it again" if damage is cut_off else name
    ):
        load()


CAUSAL = AutoModelForCausalLM._model_mapping


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm", "bert-generation"])
def test_encoder_is_no_language_model(kind):
    """Of each the logits of the first token depend on the second, unless the config says otherwise."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "emb_dim": 8}
    small |= {"vocab_size": 9, "n_words": 9, "n_heads": 2, "n_layers": 1, "intermediate_size": 8}
    for is_causal in (False, True):
        config = AutoConfig.for_model(kind, **small, is_decoder=is_causal, causal=is_causal)
        model = CAUSAL[type(config)](config).eval()
        with torch.no_grad():
            first = model(torch.tensor([[5, 6], [5, 7]])).logits[:, 0]
        assert torch.equal(*first) == is_causal
        if is_causal:
            check_is_causal(config, "base")
        else:
            with pytest.raises(InputError, match=f"base is an encoder .{kind}., .* name a decoder"):
                check_is_causal(config, "base")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba", "gemma2", "bart", "modernbert-decoder"])
def test_decoders_are_language_models(kind):
    check_is_causal(AutoConfig.for_model(kind), "base")


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_pickle_of_more_than_tensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpt2().config.save_pretrained(tmp_path)
    torch.save({"a": Code()}, "pytorch_model.bin")
    with pytest.raises(InputError):
        load_model(str(tmp_path))
    assert not (tmp_path / "executed").exists()


LOADED = ["tokenizer.json", "config.json", WEIGHTS, "modeling_own.py"]
LOADED += ["chat_template.jinja", "additional_chat_templates/tool.jinja"]


@pytest.mark.parametrize("name", LOADED)
def test_fingerprint_covers_the_files_that_are_loaded(save, tiny_model, name):
    folder = str(base := save("gpt2"))
    shutil.copy(tiny_model / "tokenizer.json", base)
    (base / "additional_chat_templates").mkdir()
    for own in LOADED[-3:]:
        (base / own).write_text("")
    before = fingerprint(folder)
    for other in ("README.md", ".cache"):
        (base / other).write_text("other files do not count")

    assert fingerprint(folder) == before

    (base / name).write_bytes((base / name).read_bytes() + b" ")
    assert fingerprint(folder) != before


def test_gguf_file_that_is_cut_off_is_named(tmp_path):
    pytest.importorskip("gguf")
    (file := tmp_path / "half.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(InputError, match=r"half\.gguf'.*damaged or cut off, copy or download"):
        load(AutoConfig.from_pretrained, str(file), trust_remote_code=False)
