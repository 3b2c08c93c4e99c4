"""Tiny models and data, for runs with every method."""

from tiny_models import text_file, tiny_model, tokenizer  # noqa: F401
