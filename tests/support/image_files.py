"""Files of tiny images, for tests of the laboratory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


def bars(
    path: Path, n: int, seed: int = 0, names: Sequence[str] = ("left", "above", "dark")
) -> Path:
    """A file of `n` noisy images of three classes: bright at the left, bright above, dark."""
    from qpeft_lab.data.images import write_images

    draw = np.random.default_rng(seed)
    images = draw.integers(0, 60, (n, 8, 8), dtype=np.uint8)
    labels = np.arange(n) % 3
    images[labels == 0, :, :3] += 180
    images[labels == 1, :3] += 180
    write_images(
        path, [(pixels, names[label]) for pixels, label in zip(images, labels, strict=True)]
    )
    return path


@pytest.fixture
def bar_files(tmp_path: Path) -> tuple[Path, Path]:
    """Grey images of three classes to train on, and others to be scored on."""
    return bars(tmp_path / "train.parquet", 96), bars(tmp_path / "test.parquet", 30, seed=1)
