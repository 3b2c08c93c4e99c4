"""Validates a study beyond its fields: the settings of each method, on a tiny base without weights."""

import warnings
from pathlib import Path

from transformers import GPT2Config, ViTConfig

from qpeft.core.meta_model import on_meta
from qpeft_lab.compare.plan import Host, sized
from qpeft_lab.compare.study import Study
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.training.classifier import classifier_on_meta

_TEXT = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=512, bos_token_id=0, eos_token_id=0)
_IMAGES = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 10}


def count_methods(study: Study, folder: Path) -> dict[str, int]:
    """Trainable parameters of each method, as in a plan. `folder` is for the base of a classifier.

    Raises ConfigError for a setting that its method lacks, or a value out of range.
    """
    if study.is_language_model:
        host = Host(on_meta(_TEXT, TASKS[study.task].peft_type, trust_remote_code=False))
    else:
        ViTConfig(hidden_size=16, intermediate_size=32, **_IMAGES).save_pretrained(folder)
        base = classifier_on_meta(str(folder), study.task, None, trust_remote_code=False)
        host = Host(base.model, base.trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes that a tiny base does not have
        counts = {spec.key: sized(study, host, spec).trainable for spec in study.methods if not spec.at_size_of}
        for spec in study.methods:
            if spec.at_size_of:
                counts[spec.key] = sized(study, host, spec, counts[spec.at_size_of]).trainable
    return counts
