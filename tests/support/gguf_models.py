"""Tiny models of the architectures that `qpeft export --gguf` supports, and LoRAs on them."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

HEADS = {"q_proj": 4, "k_proj": 2}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS["q_proj"],
    "num_key_value_heads": HEADS["k_proj"],
    "head_dim": 8,
}
VISION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2}
ALL_MAPS = r"(?!.*vision).*(layers|h)\.\d+\.(self_attn|attn|mlp)\.\w*(proj|c_attn|c_fc)"


def tiny(model_type, **changes):
    """A random causal language model of this type: width 16, 2 layers, 50 tokens."""
    sizes = GPT2 if model_type == "gpt2" else SIZES
    if model_type == "gemma3":
        sizes = {"text_config": SIZES, "vision_config": VISION}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**sizes, **changes})
    )


def lora(base, **settings):
    """A LoRA that has left its start on every linear map of the layers."""
    config = {"r": 2, "lora_alpha": 6, "target_modules": ALL_MAPS, "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**{**config, **settings}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def in_rotary_pairs(rows, n_heads):
    """llama.cpp's order of a Llama's queries and keys: row 2 i + s of a head is row i of half s."""
    per_head = len(rows) // n_heads
    return np.stack(
        [
            rows[head * per_head + half * (per_head // 2) + i]
            for head in range(n_heads)
            for i in range(per_head // 2)
            for half in range(2)
        ]
    )
