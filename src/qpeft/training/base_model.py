"""The base model of a run: found early, loaded late, known by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qpeft.errors import ConfigError, InputError
from qpeft.training.nearby import explain_missing, is_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Loaded = TypeVar("Loaded")

_LONGEST_DEFAULT = 512


def load_config(model: str) -> PretrainedConfig:
    """The config of a folder or hub id. Raises InputError if there is none."""
    from transformers import AutoConfig

    return load(AutoConfig.from_pretrained, model)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises InputError if there is none."""
    from transformers import AutoTokenizer

    tokenizer = load(AutoTokenizer.from_pretrained, model)
    if not tokenizer.vocab_size:  # what transformers makes of a folder without a tokenizer's files
        raise InputError(f"the base model {model!r} has no tokenizer; put its tokenizer.json beside the weights")
    return tokenizer


def load_model(model: str, dtype: str = "float32") -> PreTrainedModel:
    """The causal language model of a folder or hub id. Raises InputError if there is none."""
    import torch
    from transformers import AutoModelForCausalLM

    return load(AutoModelForCausalLM.from_pretrained, model, dtype=getattr(torch, dtype))


def load(loader: Callable[..., Loaded], model: str, **options: Any) -> Loaded:
    """What `loader`, a `from_pretrained`, makes of a folder or hub id. Raises InputError if it cannot."""
    path = Path(model).expanduser()
    if is_path(model) and not path.exists():
        raise InputError(f"no model folder {model}: {explain_missing(model)}")
    try:
        return loader(str(path) if path.is_dir() else model, **options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load the base model {model!r}: {reason}") from error


def block_length(seq_len: int | None, config: PretrainedConfig, reserved: int = 0) -> int:
    """`seq_len`, by default the model's context less `reserved` positions, up to 512.

    Raises ConfigError if it does not fit.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return seq_len or _LONGEST_DEFAULT
    room = context - reserved
    if room < 2:
        raise ConfigError(f"{reserved} virtual tokens leave no room in the model's context of {context}; take fewer")
    if seq_len is None:
        return min(room, _LONGEST_DEFAULT)
    if seq_len > room:
        prefix = f", less {reserved} virtual tokens" if reserved else ""
        raise ConfigError(f"seq_len={seq_len} is longer than the model's context of {context} tokens{prefix}")
    return seq_len


def fingerprint(model: str, config: PretrainedConfig) -> str:
    """What tells this base from every other: the hub's commit, or SHA-256 over a folder's config and weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    sha = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as opened:
            sha.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{sha.hexdigest()}"
