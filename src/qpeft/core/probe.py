"""Inputs of a fixed seed for any transformers model, to compare two forms of one adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.errors import ConfigError

_N_ROWS, _N_TOKENS, _IMAGE_SIZE = 2, 16, 224


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """Token ids (2, up to 16), the same for the decoder of an encoder-decoder, or two images; on the model's device.

    Raises:
        ConfigError: the model takes other inputs, or does not declare them.
    """
    base = model.get_base_model()
    config, kind = getattr(base, "config", None), getattr(base, "main_input_name", None)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    if kind == "pixel_values":
        return {kind: _images(config, generator).to(device)}
    if kind != "input_ids" or config is None:
        raise ConfigError(
            f"{type(base).__name__} takes {kind or 'undeclared inputs'}, for which there is no "
            "built-in probe; give one: qpeft.export(model, folder, probe={...})"
        )
    ids = _tokens(base, generator).to(device)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}


def _tokens(base: Any, generator: torch.Generator) -> Tensor:
    config = base.config.get_text_config()
    n_tokens = min(_N_TOKENS, getattr(config, "max_position_embeddings", None) or _N_TOKENS)
    # a decoder that classifies finds the end of each row by its padding; without padding it accepts one row
    alone = base.get_output_embeddings() is None and getattr(config, "pad_token_id", None) is None
    return torch.randint(config.vocab_size, (1 if alone else _N_ROWS, n_tokens), generator=generator)


def _images(config: Any, generator: torch.Generator) -> Tensor:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", _IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return torch.randn(_N_ROWS, getattr(config, "num_channels", 3), height, width, generator=generator)
