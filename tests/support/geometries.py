"""Configurations of published models, as a hub has them, without weights."""

from pathlib import Path


def write_geometry(name: str, folder: Path) -> None:
    """Write the config.json of a model."""
    from transformers import Gemma2Config, GemmaConfig, GPT2Config

    configs = {
        "gpt2-small": GPT2Config(),
        "gemma-2b": GemmaConfig(
            vocab_size=256_000,
            hidden_size=2048,
            intermediate_size=16_384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
        ),
        "gemma-2-2b": Gemma2Config(),
    }
    configs[name].save_pretrained(folder)
