"""Classification of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.errors import ConfigError
from qpeft.training.tasks.classification import Classification, Example
from qpeft.training.tasks.images import has_validation_images, image_bytes, load_images, open_image
from qpeft.training.tasks.labelled_data import Labelled

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

_USUAL_SIZE = 224


class ImageClassification(Classification):
    """Images, which the image processor of the model resizes and normalizes when a batch is made."""

    name = "image-classification"

    def _load_processor(self, reserved: int) -> None:
        self._mode = "L" if n_channels(self.config) == 1 else "RGB"
        self.processor = load_image_processor(self.settings.model, self.config, self.settings.trust_remote_code)

    def read(self, source: str, split: str) -> list[Labelled]:
        return load_images(source, split, self.settings.label_column)

    def has_validation(self, source: str) -> bool:
        return has_validation_images(source)

    def content_bytes(self, content: Any) -> bytes:
        return image_bytes(content)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """pixel_values float32 (B, channels, height, width), labels int64 (B,)."""
        import torch

        images = [np.array(open_image(content, self._mode)) for content, _ in examples]
        images = [image if image.ndim == 3 else image[..., None] for image in images]  # (h, w, c)
        made = self.processor(images, input_data_format="channels_last", return_tensors="pt")
        return {"pixel_values": made["pixel_values"], "labels": torch.tensor([index for _, index in examples])}

    def save_processor(self, folder: Path) -> None:
        self.processor.save_pretrained(str(folder))


def load_image_processor(model: str, config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """The image processor of a base, with PIL; if it has none, one that fits its config, with a warning."""
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    if _has_image_processor(model):
        from qpeft.core.base_model import load

        try:
            return load(AutoImageProcessor.from_pretrained, model, trust_remote_code, backend="pil")
        except ImportError as error:
            raise ConfigError(
                "this version of transformers needs torchvision for image processors: pip install torchvision, "
                "or a newer transformers"
            ) from error
    height, width = image_size(config)
    n = n_channels(config)
    warnings.warn(
        f"the base model has no preprocessor_config.json: images are converted to {height} x {width} and {n} "
        "channel(s), as in its config, with values from -1 to 1 (mean and standard deviation 0.5)",
        stacklevel=2,
    )
    return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=[0.5] * n, image_std=[0.5] * n)


def _has_image_processor(model: str) -> bool:
    from transformers.models.auto.image_processing_auto import get_image_processor_config
    from transformers.utils import IMAGE_PROCESSOR_NAME
    from transformers.utils.hub import cached_file

    if get_image_processor_config(model):
        return True
    # transformers 5.5 does not find preprocessor_config.json here
    return cached_file(model, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None


def n_channels(config: Any) -> int:
    """Channels of the model's images: 1 for grayscale, 3 for RGB."""
    return getattr(getattr(config, "vision_config", config), "num_channels", None) or 3


def image_size(config: Any) -> tuple[int, int]:
    """Height and width of the model's images; 224 x 224 for a model that takes any size."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or _USUAL_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[1])
