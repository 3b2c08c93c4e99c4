"""The exported folder has the files of a stock PEFT adapter, and gives equal logits without qpeft."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import qpeft
from qpeft.core.export import probe_inputs
from qpeft.errors import ConfigError, VerificationError

SHAPES = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
WITHOUT_QPEFT = """
import sys
sys.modules["qpeft"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.arange(24).view(2, 12) % 50
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, sys.argv[3])
"""


@pytest.fixture
def exported(tmp_path):
    return tmp_path / "exported"


@pytest.mark.parametrize("shape", SHAPES)
def test_files_and_logits_equal_those_of_stock_peft(llama, ids, adapters, exported, tmp_path, shape):
    plain, llama_copy = copy.deepcopy(llama), copy.deepcopy(llama)
    model = adapters.train(adapters.qpa(llama, **SHAPES[shape]), ids)
    report = qpeft.export(model, exported)
    fields = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **SHAPES[shape]}
    stock = get_peft_model(plain, LoraConfig(**fields))
    stock.save_pretrained(tmp_path / "stock", save_embedding_layers=False)
    ours, theirs = (load_file(p / "adapter_model.safetensors") for p in (exported, tmp_path / "stock"))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    ours, theirs = (json.loads((p / "adapter_config.json").read_text()) for p in (exported, tmp_path / "stock"))
    assert ours["target_modules"] == sorted(ours["target_modules"])  # in every process
    for config in (ours, theirs):  # sets have no order in JSON
        config["target_modules"] = sorted(config["target_modules"])
    assert ours == theirs
    assert report.max_logit_difference <= 1e-6
    assert report.n_bytes == (exported / "adapter_model.safetensors").stat().st_size
    loaded = PeftModel.from_pretrained(llama_copy, exported).eval()
    torch.testing.assert_close(adapters.logits(loaded, ids), adapters.logits(model, ids), atol=1e-6, rtol=0)


@pytest.mark.long
def test_exported_adapter_loads_without_qpeft(gpt2, ids, adapters, exported, tmp_path):
    gpt2.save_pretrained(tmp_path / "base")
    base = type(gpt2).from_pretrained(tmp_path / "base")
    model = adapters.train(adapters.qpa(base, target_modules=["c_attn", "lm_head"]), ids)
    qpeft.export(model, exported)
    command = [sys.executable, "-c", WITHOUT_QPEFT, tmp_path / "base", exported, tmp_path / "logits.pt"]
    subprocess.run(command, check=True, capture_output=True)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(found, adapters.logits(model, torch.arange(24).view(2, 12) % 50), atol=1e-6, rtol=0)


def test_export_of_a_second_adapter(llama, ids, adapters, exported):
    model = adapters.qpa(llama)
    model.add_adapter("second", qpeft.QPAConfig(r=2, target_modules=["q_proj"], chunk_size=8, hidden=(4,)))
    model.set_adapter("second")
    adapters.train(model, ids)
    report = qpeft.export(model, exported, adapter_name="second")
    assert report.n_deployed == 2 * 2 * (16 + 16)
    assert model.active_adapters == ["second"]


def test_only_the_card_of_a_compact_checkpoint_imports_qpeft(gpt2, ids, adapters, exported, tmp_path):
    model = adapters.train(adapters.qpa(gpt2, target_modules=["lm_head"]), ids)
    qpeft.export(model, exported)
    qpeft.save(model, tmp_path / "compact")
    assert ["import qpeft" in (p / "README.md").read_text() for p in (exported, tmp_path / "compact")] == [False, True]
    record = json.loads((exported / "qpeft.json").read_text())
    assert record["n_trained"] == model.base_model.generators["default"].count.total


def test_only_an_earlier_export_is_replaced(llama, ids, adapters, exported, tmp_path):
    model = adapters.qpa(llama)
    qpeft.export(model, exported)
    first = load_file(exported / "adapter_model.safetensors")
    qpeft.export(adapters.train(model, ids), exported)
    second = load_file(exported / "adapter_model.safetensors")
    assert any(not torch.equal(first[k], second[k]) for k in first)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"contains other files .*thesis\.txt"):
        qpeft.export(model, tmp_path)


def test_failed_export_saves_nothing(llama, ids, adapters, exported, monkeypatch):
    model = adapters.train(adapters.qpa(llama), ids)
    model.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        qpeft.export(model, exported)
    model.unmerge_adapter()
    with pytest.raises(ConfigError, match="'unknown' is not generated by qpeft"):
        qpeft.export(model, exported, adapter_name="unknown")
    binding = model.base_model.generators.bindings["default"]
    wrong = [v + 0.1 for v in binding.values()]
    monkeypatch.setattr(binding, "values", lambda: wrong)
    with pytest.raises(VerificationError, match="nothing was saved"):
        qpeft.export(model, exported)
    monkeypatch.setattr(binding, "values", lambda: [v * torch.inf for v in wrong])
    with pytest.raises(ConfigError, match="non-finite adapter parameter in"):
        qpeft.export(model, exported)
    assert list(exported.parent.iterdir()) == []


# -- the inputs with which an export is verified


def adapted(base):
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).eval()


def test_probe_is_within_the_context_the_vocabulary_and_the_image_of_the_model(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=7, max_position_embeddings=5, bos_token_id=0, eos_token_id=0, **sizes)
    ids = probe_inputs(adapted(LlamaForCausalLM(config)))["input_ids"]
    assert ids.shape == (1, 5)
    assert ids.max() < 7
    clip = CLIPConfig(vision_config={**sizes, "image_size": 6, "patch_size": 3}, text_config=sizes)
    model = adapted(CLIPForImageClassification(clip))
    assert probe_inputs(model)["pixel_values"].shape == (1, 3, 6, 6)
    assert model(**probe_inputs(model)).logits.shape[0] == 1
    config = qpeft.QPAConfig(r=2, target_modules=["0"], chunk_size=8, hidden=(1,), n_layers=1)
    without = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)
    with pytest.raises(ConfigError, match="no built-in probe for Sequential"):
        qpeft.export(without, tmp_path / "exported")
