"""The inputs with which an export is verified."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import qpeft
from qpeft.core.probe import probe_inputs
from qpeft.errors import ConfigError


def adapted(base):
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).eval()


def test_probe_of_every_family(family, base, models):
    model = models.adapt(base, "qpa", family)
    probe = probe_inputs(model)
    assert models.logits(model, probe).shape[0] == 2
    assert all(torch.equal(probe[name], again) for name, again in probe_inputs(model).items())


def test_ids_are_within_the_context_and_the_vocabulary():
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=5,
        bos_token_id=0,
        eos_token_id=0,
    )
    ids = probe_inputs(adapted(LlamaForCausalLM(config)))["input_ids"]
    assert ids.shape == (2, 5)
    assert ids.max() < 7


def test_decoder_classifier_without_padding_gets_one_row():
    config = GPT2Config(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    model = adapted(GPT2ForSequenceClassification(config))
    assert model(**probe_inputs(model)).logits.shape == (1, 2)


def test_encoder_decoder_and_nested_image_config():
    bart = BartConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "forced_eos_token_id"), 0),
    )
    model = adapted(BartForConditionalGeneration(bart))
    assert model(**probe_inputs(model)).logits.shape == (2, 16, 9)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPConfig(vision_config={**sizes, "image_size": 6, "patch_size": 3}, text_config=sizes)
    model = adapted(CLIPForImageClassification(clip))
    assert probe_inputs(model)["pixel_values"].shape == (2, 3, 6, 6)
    assert model(**probe_inputs(model)).logits.shape[0] == 2


def test_model_with_other_inputs_needs_a_probe(tmp_path):
    config = Wav2Vec2Config(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
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
    with pytest.raises(ConfigError, match=r"takes input_values, .* give one: qpeft\.export\(model, folder, probe="):
        qpeft.export(model, tmp_path / "exported")
    probe = {"input_values": torch.randn(2, 64)}
    assert qpeft.export(model, tmp_path / "exported", probe=probe).max_logit_difference <= 1e-6


def test_module_without_declared_inputs_raises(tmp_path):
    config = qpeft.QPAConfig(r=2, target_modules=["0"], chunk_size=8, hidden=(1,), n_layers=1)
    model = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)
    with pytest.raises(ConfigError, match=r"Sequential takes undeclared inputs"):
        qpeft.export(model, tmp_path / "exported")


@pytest.mark.parametrize("family", ["vit"], indirect=True)
@pytest.mark.parametrize("excluded", [["fc1"], r".*\.fc1", None])
def test_excluded_head_is_added_to_exclude_modules(family, base, models, excluded):
    settings = {"target_modules": "all-linear", "modules_to_save": None, "exclude_modules": excluded}
    model = models.adapt(base, "quantum_peft", family, **settings)
    kinds = {name.rpartition(".")[2] for name in model.base_model.targeted_module_names}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "fc2", *([] if excluded else ["fc1"])}
    config = models.config("quantum_peft", family, **settings)
    assert len(qpeft.plan(base.config, config).target_modules) == 2 * len(kinds)
