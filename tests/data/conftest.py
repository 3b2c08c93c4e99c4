"""Tiny models and data."""

from tiny_models import (  # noqa: F401
    bar_files,
    opinion_files,
    text_file,
    tiny_encoder,
    tiny_model,
    tiny_vit,
    tokenizer,
)
