"""Tiny models and data, for every method."""

from families import base, batch, family  # noqa: F401
from tiny_models import text_file, tiny_model, tokenizer  # noqa: F401
