"""Settings that every Trainer of the tests has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

QUIET: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 2,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "save_strategy": "no",
}


def arguments(folder: Path, **changes: Any):
    """TrainingArguments of a silent run on the CPU, without checkpoints."""
    from transformers import TrainingArguments

    return TrainingArguments(str(folder), **{**QUIET, **changes})
