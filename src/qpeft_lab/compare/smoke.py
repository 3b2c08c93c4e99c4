"""Smoke test of a study: every method takes a few steps on a small random base and invented data,
offline.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from qpeft.checks import unknown
from qpeft.errors import ConfigError
from qpeft.folders import replace_folder
from qpeft_lab.base_model import load_config
from qpeft_lab.compare.data import PARTS, TEXT_PAIR, on_parts, part_file, write_parts
from qpeft_lab.compare.study import Study
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.demo import base_model, base_path
from qpeft_lab.files import output_file

STAND_IN = "stand-in"  # folder of the stand-in's base and data, in that of the study

_SIZES = {  # of the fields that a config has
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "image_size": 8,
    "patch_size": 4,
}
_ROWS = {"train": 32, "validation": 12, "test": 12}
_CLASSES = 3
_WORDS = [
    "king",
    "queen",
    "bird",
    "fox",
    "wood",
    "night",
    "song",
    "house",
    "river",
    "stone",
    "road",
    "star",
]
_STEPS = 2
_TRAINING: dict[str, Any] = {
    "steps": _STEPS,
    "eval_every": _STEPS,
    "save_every": _STEPS,
    "eval_blocks": 2,
}
_TRAINING |= {"epochs": None, "batch_size": 2, "gradient_accumulation_steps": 1, "dtype": "float32"}
_GENERATION = {"n_prompts": 2, "max_new_tokens": 4, "bertscore_model": None}
_SEQ_LEN = 32


def smoke_test(study: Study, folder: Path) -> Study:
    """`study` with a stand-in for its base and data, one seed, one learning rate and two steps.

    The stand-in has the architecture of the base, and data of the study's format. It is written to
    `folder`.

    Raises ConfigError if the folder is in use for something else, or the architecture is unknown.
    """
    place = folder / STAND_IN
    if not place.is_dir():
        if output_file(folder, is_folder=True).is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name another folder for the smoke test")
        config = _config(study)
        with replace_folder(place) as target:
            _write_base(study, config, target / "base")
            write_parts(study, {part: _rows(study, part) for part in PARTS}, target)
    train, validation, test = (str(place / part_file(study, part)) for part in PARTS)
    seq_len = min(study.run.seq_len or _SEQ_LEN, _SEQ_LEN)
    base = str(place / "base")
    return study.model_copy(
        update={
            "name": f"smoke-{study.name}",
            "title": f"Smoke test of: {study.title}",
            "question": (
                "Does every method run? Base and data are invented: no value on this page is a"
                " result."
            ),
            "run": on_parts(
                study.run,
                model=base,
                data=train,
                eval_data=validation,
                seq_len=seq_len,
                **_TRAINING,
            ),
            "test_data": test,
            "seeds": study.seeds[:1],
            "tuning": study.tuning.model_copy(update={"grid": [1.0]}),
            # invented data have nothing to do with published values
            "methods": [method.model_copy(update={"published": []}) for method in study.methods],
            "test_blocks": _TRAINING["eval_blocks"],
            "generation": study.generation and replace(study.generation, **_GENERATION),
            "costs": False,
        }
    )


def _write_base(study: Study, config: PretrainedConfig, folder: Path) -> None:
    """A model with random weights, and its tokenizer or an image processor of ViT."""
    task = TASKS[study.run.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto_class = (
            getattr(transformers, task.auto_class)
            if task.is_language_model
            else transformers.AutoModel
        )
        auto_class.from_config(config).save_pretrained(folder)
    if task.has_images:
        size: dict[str, int] = dict.fromkeys(("height", "width"), _SIZES["image_size"])
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    else:
        _tokenizer().save_pretrained(folder)


def _config(study: Study) -> PretrainedConfig:
    """The config of the base's architecture with small sizes."""
    own = {**study.smoke}
    name: str = own.pop("model_type", None) or load_config(base_model(study.run.model)).model_type
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            f"smoke.model_type: {unknown('architecture', name, list(CONFIG_MAPPING))}"
        )
    default = AutoConfig.for_model(name)
    end = (tokenizer := _tokenizer()).eos_token_id
    # without a padding token, whose random vector would be zero, also in a tied head
    of_texts = {
        "vocab_size": len(tokenizer),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
    }
    sizes = _SIZES | (of_texts if hasattr(default, "vocab_size") else {})
    return AutoConfig.for_model(
        name, **{name: size for name, size in sizes.items() if hasattr(default, name)} | own
    )


def _tokenizer() -> PreTrainedTokenizerBase:
    """That of the embedded base, which is always on this machine."""
    return AutoTokenizer.from_pretrained(
        base_path(), model_max_length=_SIZES["max_position_embeddings"]
    )


def _rows(study: Study, part: str) -> list[dict[str, Any]]:
    """Rows of the format of the study's data, with the columns of the split data."""
    random = Random(part)
    task = TASKS[study.run.task]
    size = _SIZES["image_size"]
    rows: list[dict[str, Any]] = []
    for number in range(_ROWS[part]):
        text = f"{part} {number}: {' '.join(random.choices(_WORDS, k=9))}."
        kind = number % _CLASSES
        if study.generation is not None and task.is_language_model:
            rows.append({"prompt": f"{part}[{number // 2}]", "completion": f" {text}"})
        elif task.is_language_model:
            rows.append({"text": "" if study.run.pad_rows and number % 4 == 1 else text})
        else:
            image = np.frombuffer(random.randbytes(3 * size**2), np.uint8).reshape(size, size, 3)
            row: dict[str, Any] = {"image": image} if task.has_images else {"text": text}
            if study.run.text_pair_column and not task.has_images:
                row[TEXT_PAIR] = text
            row["label"] = kind / 2 if task.is_regression else f"class {kind}"
            rows.append(row)
    return rows
