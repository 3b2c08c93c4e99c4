"""The shapes of known models, with random weights: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from qpeft.demo import base_path

_GPT2_CASES = {"attention": ["c_attn"], "all linear maps": ["c_attn", "c_proj", "c_fc"], "lm_head": ["lm_head"]}
_LLAMA_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_LLAMA_CASES = {
    "attention": _LLAMA_ATTENTION,
    "all linear maps": [*_LLAMA_ATTENTION, "gate_proj", "up_proj", "down_proj"],
    "lm_head": ["lm_head"],
}


@dataclass(frozen=True)
class Geometry:
    """A config, and the sets of modules that are adapted by the name of the case."""

    config: PreTrainedConfig
    cases: dict[str, list[str]]

    def model(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """A new model, made where it will be used."""
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(self.config, dtype=dtype)


GEOMETRIES = {
    "tiny": Geometry(
        GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=1000, bos_token_id=0, eos_token_id=0), _GPT2_CASES
    ),
    "embedded": Geometry(AutoConfig.from_pretrained(base_path()), _GPT2_CASES),
    "gpt2": Geometry(GPT2Config(), _GPT2_CASES),
    "llama-1b": Geometry(
        LlamaConfig(  # as Llama 3.2 1B
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        ),
        _LLAMA_CASES,
    ),
}
