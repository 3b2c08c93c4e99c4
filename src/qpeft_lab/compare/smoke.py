"""Smoke test of a study: every method takes a few steps on a small random base and invented data, offline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.checks import unknown
from qpeft.errors import ConfigError
from qpeft.files import replace_folder
from qpeft_lab.base_model import load_config
from qpeft_lab.compare.data import PARTS, part_file, write_parts
from qpeft_lab.compare.study import Study
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.demo import base_model, base_path
from qpeft_lab.files import output_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

STAND_IN = "stand-in"  # folder of the stand-in's base and data, in that of the study

_SIZES = {  # of the fields that a config has
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "image_size": 8, "patch_size": 4},
}
_ROWS = {"train": 32, "validation": 12, "test": 12}
_CLASSES = 3
_WORDS = ["king", "queen", "bird", "fox", "wood", "night", "song", "house", "river", "stone", "road", "star"]
_STEPS = 2
_TRAINING = {"steps": _STEPS, "eval_every": _STEPS, "save_every": _STEPS, "eval_blocks": 2}
_TRAINING |= {"batch_size": 2, "gradient_accumulation_steps": 1, "dtype": "float32"}
_GENERATION = {"n_prompts": 2, "max_new_tokens": 4, "bertscore_model": None}
_SEQ_LEN = 32


def smoke_test(study: Study, folder: Path) -> Study:
    """`study` with a stand-in for its base and data, one seed, one learning rate and two steps.

    The stand-in has the architecture of the base, and data of the study's format. It is written to `folder`.

    Raises ConfigError if the folder is in use for something else, or the architecture is unknown.
    """
    place = folder / STAND_IN
    if not place.is_dir():
        if output_folder(folder).is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name another folder for the smoke test")
        config = _config(study)
        with replace_folder(place) as target:
            _write_base(study, config, target / "base")
            write_parts(study, {part: _rows(study, part) for part in PARTS}, target)
    files = {part: str(place / part_file(study, part)) for part in PARTS}
    values = study.model_dump()
    for published in (one for method in values["methods"] for one in method["published"]):
        published["data"] = None  # shown next to the values of the stand-in
    length = min(study.run.seq_len or _SEQ_LEN, _SEQ_LEN)
    training = {name: value for name, value in study.training.items() if name != "epochs"}
    if study.glue:  # which determines them
        training |= {name: getattr(study.run, name) for name in ("text_column", "text_pair_column", "label_column")}
    changes: dict[str, Any] = {
        "name": f"smoke-{study.name}",
        "title": f"Smoke test of: {study.title}",
        "question": "Does every method run? Base and data are invented: no value on this page is a result.",
        "base": str(place / "base"),
        "data": files["train"],
        "eval_data": files["validation"],
        "test_data": files["test"],
        "seeds": study.seeds[:1],
        "tuning": values["tuning"] | {"grid": [1.0]},
        "training": training | _TRAINING | {"seq_len": length},
        "test_blocks": _TRAINING["eval_blocks"],
        "costs": False,
    }
    if study.generation is not None:
        changes["generation"] = values["generation"] | _GENERATION
    return Study.model_validate(values | changes)


def _write_base(study: Study, config: PretrainedConfig, folder: Path) -> None:
    """A model with random weights, and its tokenizer or an image processor of ViT."""
    import torch
    import transformers

    task = TASKS[study.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto_class = getattr(transformers, task.auto_class) if task.is_language_model else transformers.AutoModel
        auto_class.from_config(config).save_pretrained(folder)
    if task.has_images:
        size: dict[str, int] = dict.fromkeys(("height", "width"), _SIZES["image_size"])
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    else:
        _tokenizer().save_pretrained(folder)


def _config(study: Study) -> PretrainedConfig:
    """The config of the base's architecture with small sizes."""
    from transformers import CONFIG_MAPPING, AutoConfig

    own = {**study.smoke}
    name: str = own.pop("model_type", None) or load_config(base_model(study.base)).model_type
    if name not in CONFIG_MAPPING:
        raise ConfigError(f"smoke.model_type: {unknown('architecture', name, list(CONFIG_MAPPING))}")
    default = AutoConfig.for_model(name)
    end = (tokenizer := _tokenizer()).eos_token_id
    # without a padding token, whose random vector would be zero, also in a tied head
    of_texts = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    sizes = _SIZES | (of_texts if hasattr(default, "vocab_size") else {})
    return AutoConfig.for_model(name, **{name: size for name, size in sizes.items() if hasattr(default, name)} | own)


def _tokenizer() -> PreTrainedTokenizerBase:
    """That of the embedded base, which is always on this machine."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_path(), model_max_length=_SIZES["max_position_embeddings"])


def _rows(study: Study, part: str) -> list[dict[str, Any]]:
    """Rows with the columns of the study's data, or images."""
    n, run = _ROWS[part], study.run
    if TASKS[study.task].has_images:
        size = (n, _SIZES["image_size"], _SIZES["image_size"], 3)
        images = np.random.default_rng(PARTS.index(part)).integers(0, 256, size, dtype=np.uint8)
        return [{"image": image, "label": f"class {number % _CLASSES}"} for number, image in enumerate(images)]
    words, rows = random.Random(part), []
    for number in range(n):
        text, kind = f"{part} {number}: {' '.join(words.choices(_WORDS, k=9))}.", number % _CLASSES
        if not study.is_language_model:
            label = kind / 2 if TASKS[study.task].is_regression else f"class {kind}"
            pair = {run.text_pair_column: text} if run.text_pair_column else {}
            rows.append({run.text_column: text, **pair, run.label_column: label})
        elif study.generation is not None:
            rows.append({run.prompt_column: f"{part}[{number // 2}]", run.completion_column: f" {text}"})
        else:
            rows.append({run.text_column: "" if run.pad_rows and number % 4 == 1 else text})
    return rows
