"""The base model of a run: complete weights, and a fingerprint of every file that determines the results."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, llama

from qpeft.core.base_model import fingerprint, load_config, load_model, load_tokenizer, tokenizer_fingerprint
from qpeft.errors import InputError
from qpeft.training.tasks.classifier import load_classifier
from qpeft.training.tasks.record import TaskRecord

WEIGHTS = "model.safetensors"


def without(folder, *parts):
    """Remove the tensors whose name contains one of `parts`."""
    kept = {key: t for key, t in load_file(folder / WEIGHTS).items() if not any(part in key for part in parts)}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def other_shape(folder, name):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, name: tensors[name][:-1].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight", "ln_f.bias", "wte.weight"])
def test_language_model_that_lacks_a_weight_is_refused(tmp_path, name):
    gpt2().save_pretrained(tmp_path)
    load_model(str(tmp_path))
    with pytest.raises(InputError, match=rf"no weights of the right shape for [12] of its tensors \(.*{name}"):
        load_model(without(tmp_path, name))


def test_language_model_without_its_untied_head_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load_model(without(tmp_path, "lm_head"))


def test_weight_of_another_shape_is_refused(tmp_path):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"ln_f\.weight"):
        load_model(other_shape(tmp_path, "transformer.ln_f.weight"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_file_that_is_cut_off_is_named(tiny_encoder, tmp_path, name):
    folder = shutil.copytree(tiny_encoder, tmp_path / "base")
    (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(InputError, match=f"its {name} is damaged or cut off .*; copy or download it again"):
        load_tokenizer(str(folder)) and classifier(folder)


@pytest.mark.parametrize(("is_zip", "cut"), [(True, 200), (False, 200), (False, None)])
def test_weights_of_torch_that_are_cut_off_are_named(tmp_path, is_zip, cut):
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=is_zip)
    load_model(str(tmp_path))
    file.write_bytes(file.read_bytes()[:-cut] if cut else b"")
    with pytest.raises(InputError, match=r"its pytorch_model\.bin is damaged or cut off"):
        load_model(str(tmp_path))


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [pickle.dumps(Code(), 2), pickle.dumps({"a": 1}, 2), b"no pickle", None])
def test_pickle_of_more_than_tensors_is_refused_without_torchs_advice(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    gpt2().config.save_pretrained(tmp_path)
    if content is None:
        torch.save({"a": Code()}, "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match="use weights in safetensors") as refused:
        load_model(str(tmp_path))
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_whole_files_are_not_blamed_for_another_failure(tmp_path):
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "eval_results.json").write_text("{")
    config = tmp_path / "config.json"
    content = config.read_text()
    config.write_text(content.replace('"gpt2"', '"unheard_of"'))
    with pytest.raises(InputError, match=r"^cannot load the base model '[^']*': The checkpoint .* `unheard_of`"):
        load_model(str(tmp_path))
    config.write_text(content[:-50])
    with pytest.raises(InputError, match=r"its config\.json is damaged"):
        load_model(str(tmp_path))


def classifier(folder, labels=("a", "b", "c")):
    return load_classifier(str(folder), "float32", TaskRecord("text-classification", labels), seed=0)


@pytest.mark.filterwarnings("ignore:the base model has no weights for bert.pooler")
@pytest.mark.parametrize("damage", [without, other_shape])
def test_classifier_with_a_body_that_lacks_weights_is_refused(tiny_encoder, tmp_path, damage):
    folder = shutil.copytree(tiny_encoder, tmp_path / "base")
    assert classifier(folder).trained == ["bert.pooler", "classifier"]
    with pytest.raises(InputError, match=r"for 1 of its tensors \(bert\.encoder\.layer\.0"):
        classifier(damage(folder, "bert.encoder.layer.0.attention.self.query.weight"))


@pytest.mark.filterwarnings("ignore:the base model has no weights for bert.pooler")
def test_head_of_the_base_is_complete_or_replaced(tiny_encoder, tmp_path):
    folder = tmp_path / "base"
    classifier(tiny_encoder).model.save_pretrained(folder)
    assert [classifier(folder, labels).has_new_head for labels in (("a", "b", "c"), ("a", "b"))] == [False, True]
    with pytest.raises(InputError, match=r"classifier\.bias"):
        classifier(without(folder, "classifier.bias"), ("a", "b", "c"))


def test_folder_with_an_adapter_is_no_base(tmp_path):
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has an adapter_config\.json"):
        load_model(str(tmp_path))


def test_fingerprint_covers_the_weights_that_are_loaded(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    safetensors = fingerprint(str(tmp_path), config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert fingerprint(str(tmp_path), config) == safetensors  # as in 0.1: the other file is not read
    (tmp_path / WEIGHTS).unlink()
    before = fingerprint(str(tmp_path), config)
    torch.save({key: tensor + 1 for key, tensor in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
    assert len({safetensors, before, fingerprint(str(tmp_path), config)}) == 3


def test_fingerprint_covers_weights_in_other_folders(tmp_path):
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "shards")
    names = dict.fromkeys(model.state_dict(), f"shards/{WEIGHTS}")
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = load_config(str(tmp_path))
    load_model(str(tmp_path))
    before = fingerprint(str(tmp_path), config)
    gpt2().save_pretrained(tmp_path / "shards")  # other random weights
    assert fingerprint(str(tmp_path), config) != before


def test_fingerprint_of_the_tokenizer_covers_its_files(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    config = load_config(str(folder))
    before = fingerprint(str(folder), config), tokenizer_fingerprint(str(folder), config)
    for name in ("notes.txt", "eval_results.json", "training.json", "data.txt"):
        (folder / name).write_text("other files do not count")
    assert (fingerprint(str(folder), config), tokenizer_fingerprint(str(folder), config)) == before
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    after = fingerprint(str(folder), config), tokenizer_fingerprint(str(folder), config)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]
