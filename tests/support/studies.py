"""Validates a study beyond its fields: the settings of each method, on a tiny base without weights."""

import warnings
from pathlib import Path
from typing import Any

from transformers import GPT2Config, ViTConfig

from qpeft_lab.compare.plan import counted, host_of
from qpeft_lab.compare.study import Study

_TEXT = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=512, bos_token_id=0, eos_token_id=0)
_IMAGES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 10,
}


def of_run(**fields: Any) -> dict[str, Any]:
    """Overrides of a study's run."""
    return {f"run.{name}": value for name, value in fields.items()}


def count_methods(study: Study, folder: Path) -> dict[str, int]:
    """Trainable parameters of each method, as in a plan. `folder` is for the base.

    Raises ConfigError for a setting that its method lacks, or a value out of range.
    """
    config = (
        _TEXT
        if study.run.is_language_model
        else ViTConfig(hidden_size=16, intermediate_size=32, **_IMAGES)
    )
    config.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes that a tiny base does not have
        found = counted(study, host_of(study, str(folder), trust_remote_code=False))
        return {method.key: method.trainable for method in found}
