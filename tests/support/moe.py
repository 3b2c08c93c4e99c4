"""Tiny random mixtures of experts, whose experts (and mostly their router) are parameters instead of modules."""

import torch
import transformers

_SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
_COMMON = {**_SIZES, **_HEADS, "num_experts_per_tok": 2, "tie_word_embeddings": False, "pad_token_id": 0}
_LATENT = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_SPARSE = {"n_routed_experts": 4, "moe_intermediate_size": 12, "first_k_dense_replace": 1, "n_group": 2}

# PEFT converts LoRA's targets for the first four; the last two have experts that all-linear of stock LoRA leaves out
MOE = {
    "mixtral": ("Mixtral", {"num_local_experts": 3}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 3, "moe_intermediate_size": 12}),
    "olmoe": ("Olmoe", {"num_experts": 3}),
    "deepseek_v3": ("DeepseekV3", {**_LATENT, **_SPARSE, "topk_group": 1, "num_key_value_heads": 2}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 3, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 8}),
    "gpt_oss": ("GptOss", {"num_local_experts": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
}


def make(name: str):
    """The model of this key of `MOE`, with the same values in every call."""
    torch.manual_seed(0)
    kind, settings = MOE[name]
    config = getattr(transformers, f"{kind}Config")(**{**_COMMON, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()
