"""The inputs with which an export is verified."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import qpeft
from qpeft.core.export import probe_inputs
from qpeft.errors import ConfigError

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def adapted(base):
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).eval()


def test_probe_of_every_family(family, base, models):
    model = models.adapt(base, "qpa", family)
    probe = probe_inputs(model)
    assert models.logits(model, probe).shape[0] == 1
    assert all(torch.equal(probe[name], again) for name, again in probe_inputs(model).items())


def test_ids_are_within_the_context_and_the_vocabulary():
    config = LlamaConfig(vocab_size=7, max_position_embeddings=5, bos_token_id=0, eos_token_id=0, **SIZES)
    ids = probe_inputs(adapted(LlamaForCausalLM(config)))["input_ids"]
    assert ids.shape == (1, 5)
    assert ids.max() < 7


def test_nested_image_config():
    clip = CLIPConfig(vision_config={**SIZES, "image_size": 6, "patch_size": 3}, text_config=SIZES)
    model = adapted(CLIPForImageClassification(clip))
    assert probe_inputs(model)["pixel_values"].shape == (1, 3, 6, 6)
    assert model(**probe_inputs(model)).logits.shape[0] == 1


def test_model_with_other_inputs_needs_a_probe(tmp_path):
    config = Wav2Vec2Config(
        **SIZES,
        conv_dim=(8,),
        conv_kernel=(4,),
        conv_stride=(4,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=1,
        classifier_proj_size=8,
        mask_time_prob=0.0,
    )
    qpa = qpeft.QPAConfig(r=2, target_modules=["q_proj", "v_proj"], chunk_size=16, hidden=(2,), n_layers=2)
    model = get_peft_model(Wav2Vec2ForSequenceClassification(config).eval(), qpa)
    with pytest.raises(
        ConfigError, match=r"no built-in probe .* give its inputs: qpeft\.export\(model, folder, probe="
    ):
        qpeft.export(model, tmp_path / "exported")
    probe = {"input_values": torch.randn(2, 64)}
    assert qpeft.export(model, tmp_path / "exported", probe=probe).max_logit_difference <= 1e-6


def test_module_without_declared_inputs_raises(tmp_path):
    config = qpeft.QPAConfig(r=2, target_modules=["0"], chunk_size=8, hidden=(1,), n_layers=1)
    model = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)
    with pytest.raises(ConfigError, match="no built-in probe for Sequential"):
        qpeft.export(model, tmp_path / "exported")
