"""LoRA files for llama.cpp: names, values and metadata against rules that are written out here, and
`qpeft export --gguf`. `nox -s llama_cpp` loads such files in llama.cpp.
"""

import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf_models import HEADS, in_rotary_pairs, lora, tiny
from transformers import AutoConfig

from qpeft.errors import ConfigError
from qpeft_lab.gguf_lora import ARCHITECTURES, check_base, write_gguf

# the end of a module's name -> its name in GGUF
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def written(model, folder):
    """The fields of the GGUF file of a LoRA, and its tensors."""
    model.save_pretrained(folder)
    write_gguf(folder, model.get_base_model().config, folder / "out.gguf")
    reader = GGUFReader(folder / "out.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tensors_are_those_of_llama_cpp(model_type, tmp_path):
    """As `convert_lora_to_gguf.py` writes them, but for GPT-2, whose A and B it swaps:
    tests/engines shows that llama.cpp needs them as they are.
    """
    model = lora(tiny(model_type))
    fields, tensors = written(model, tmp_path)
    architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(model_type, model_type)

    assert fields["general.architecture"] == architecture
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 6

    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(tensors) == 2 * len(layers) == (16 if model_type == "gpt2" else 28)

    for name, layer in layers.items():
        end = next(end for end in NAMES if name.endswith(end))
        number = name.removesuffix(f".{end}").rpartition(".")[2]
        expected_a, expected_b = (
            part["default"].weight.detach().numpy() for part in (layer.lora_A, layer.lora_B)
        )
        kind = end.rpartition(".")[2]
        if architecture == "llama" and kind in HEADS:
            expected_b = in_rotary_pairs(expected_b, HEADS[kind])
        stored = f"blk.{number}.{NAMES[end]}.weight.lora_"
        assert tensors[stored + "a"].dtype == np.float32
        np.testing.assert_array_equal(tensors[stored + "a"], expected_a)
        np.testing.assert_array_equal(tensors[stored + "b"], expected_b)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "r": 3},
        {"alpha_pattern": {"v_proj": 5}, "rank_pattern": {"layers.1.self_attn.v_proj": 4}},
        {"lora_alpha": 0},
    ],
    ids=["rslora", "patterns", "alpha 0"],
)
def test_scaling_of_peft_is_in_lora_b(settings, tmp_path):
    model = lora(tiny("qwen2"), **settings).to(torch.float64)
    fields, tensors = written(model, tmp_path)
    for number, layer in enumerate(model.get_base_model().model.layers):
        a, b = (tensors[f"blk.{number}.attn_v.weight.lora_{part}"] for part in "ab")
        change = fields["adapter.lora.alpha"] / len(a) * b @ a  # what llama.cpp adds
        expected = layer.self_attn.v_proj.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(change, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "norm"),
        ({"bias": "lora_only"}, "biases"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"trainable_token_indices": [3]}, "trained tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_what_gguf_cannot_hold_is_refused_by_name(settings, named, tmp_path):
    model = lora(tiny("llama", tie_word_embeddings=True), **settings)
    with pytest.raises(ConfigError, match=named):
        written(model, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_base_without_names_and_missing_package_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"gpt_neox; it has them for llama, mistral"):
        check_base(AutoConfig.for_model("gpt_neox"))
    with pytest.raises(ConfigError, match="mixtral"):  # with experts
        check_base(AutoConfig.for_model("mixtral"))

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="pip install gguf"):
        check_base(AutoConfig.for_model("llama"))
