"""A training step of every method of a recipe on a base with random weights, compared with that of its reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qpeft.compare import RECIPES
from qpeft.compare.cell import Cell
from qpeft.compare.cell_run import settings_of, untrained_model
from qpeft.compare.measurements.speed import TrainingSteps, compare_steps
from qpeft.compare.plan import make_plan
from qpeft.compare.smoke import smoke_test
from qpeft.compare.study import Study
from qpeft.compare.study_file import load_study
from qpeft.training.task_types import TASKS
from speed.measure import Row

NAMES = [name.removeprefix("recipes/").removesuffix(".yaml") for name in RECIPES]
WARM_UP = 3

_DEBERTA = {"vocab_size": 128_100, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_DEBERTA |= {"num_attention_heads": 12, "type_vocab_size": 0, "position_buckets": 256}
_GEMMA = {"vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18}
_GEMMA |= {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256}
_GPT2 = {"vocab_size": 50_257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_GPT2_MEDIUM = _GPT2 | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_MISTRAL = {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32}
_MISTRAL |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_VIT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VIT |= {"image_size": 224, "patch_size": 16}

# the sizes of each base, as in its config.json
GEOMETRIES: dict[str, dict[str, Any]] = {
    "qpa-gpt2-wikitext2": _GPT2,
    "qpa-gemma-wikitext2": _GEMMA,
    "quantum-peft-gpt2-e2e": _GPT2_MEDIUM,
    "quantum-peft-deberta-glue": _DEBERTA,
    "quantum-peft-mistral-glue": _MISTRAL,
    "quantum-peft-vit-cifar10": _VIT,
    "survey-gpt2-e2e": _GPT2,
}


def recipe_rows(name: str, is_full: bool, rounds: int) -> Iterator[Row]:
    """Seconds of a step, one row for each trained method; the reference itself shows the noise.

    `is_full`: the sizes of the base, and the recipe's batch, length and precision; otherwise those of a smoke test.
    The model is on the GPU if there is one. A step is forward, backward, clipping and AdamW.
    """
    study = load_study(f"recipes/{name}.yaml")
    with TemporaryDirectory() as folder:
        made = _stand_in(study, Path(folder) / "study", is_full)
        cells = {cell.spec.key: cell for cell in make_plan(made, Path(folder) / "study", "").final_cells({})}
        reference = cells[made.reference]
        n, length = made.training.batch_size, made.training.seq_len
        what = f"{n} images" if TASKS[made.task].has_images else f"{n} x {length} tokens"
        for key, cell in cells.items():
            if cell.spec.is_trained:
                yield _row(f"{key}: {name}, {what}", cell, reference, made, rounds)


def _stand_in(study: Study, folder: Path, is_full: bool) -> Study:
    if not is_full:
        return smoke_test(study, folder)
    sizes = study.smoke | GEOMETRIES[study.name]
    made = smoke_test(study.model_copy(update={"smoke": sizes}), folder)
    own = {name: getattr(study.training, name) for name in ("batch_size", "seq_len", "dtype")}
    return made.model_copy(update={"training": made.training.model_copy(update=own)})


def _row(what: str, cell: Cell, reference: Cell, study: Study, rounds: int) -> Row:
    runs, batches = [], []
    for one in (cell, reference):
        model, _ = untrained_model(one)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        batches.append({name: part.to(device) for name, part in _batch(model.config, study).items()})
        runs.append(TrainingSteps(model.to(device), settings_of(one, Path())))
    found = compare_steps(*runs, batches[:1], WARM_UP, rounds)
    seconds, others = found["step_ms"]["median"] / 1000, found["reference_step_ms"]["median"] / 1000
    return Row(what, study.reference, "s", seconds, others, others / seconds, rounds=rounds)


def _batch(config: Any, study: Study) -> dict[str, torch.Tensor]:
    """A full batch of the recipe's shape: random pixels or tokens without padding."""
    n, task = study.training.batch_size, TASKS[study.task]
    labels = torch.zeros(n, dtype=torch.float32 if task.is_regression else torch.int64)
    if task.has_images:
        return {"pixel_values": torch.rand(n, 3, config.image_size, config.image_size), "labels": labels}
    ids = torch.randint(config.get_text_config().vocab_size, (n, study.training.seq_len or 1))  # (B, T)
    labels = ids if study.is_language_model else labels
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
