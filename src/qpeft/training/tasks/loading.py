"""The base model of an adapter folder of any task, its tokenizer or image processor, and sample inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.core import base_model as base
from qpeft.training.task_types import TASKS
from qpeft.training.tasks.record import TaskRecord

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def load_base(model: str, record: TaskRecord | None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The base, in float32, for an adapter with this record; without a record a language model."""
    if record is None:
        return base.load_model(model, trust_remote_code=trust_remote_code)
    from qpeft.training.tasks.classifier import load_classifier

    loaded = load_classifier(model, "float32", record, 0, trust_remote_code)
    return loaded.model  # the adapter replaces a new head


def save_processor(model: str, record: TaskRecord | None, folder: Path, trust_remote_code: bool = False) -> None:
    """Save the tokenizer or image processor next to the model in `folder`."""
    if record is None or not TASKS[record.task].has_images:
        base.load_tokenizer(model, trust_remote_code).save_pretrained(str(folder))
        return
    from qpeft.training.tasks.image_classification import load_image_processor

    config = base.load_config(model, trust_remote_code)
    load_image_processor(model, config, trust_remote_code).save_pretrained(str(folder))


def probe(model: PreTrainedModel, record: TaskRecord | None) -> Tensor:
    """Two random inputs of a fixed seed: token ids (2, 16), int64, or noise (2, channels, h, w), float32."""
    import torch

    seeded = torch.Generator().manual_seed(0)
    if record is None or not TASKS[record.task].has_images:
        vocabulary = model.config.get_text_config().vocab_size
        return torch.randint(vocabulary, (2, 16), generator=seeded)
    from qpeft.training.tasks.image_classification import image_size, n_channels

    return torch.randn(2, n_channels(model.config), *image_size(model.config), generator=seeded)
