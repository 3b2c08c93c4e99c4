"""Teach a small vision transformer digits that it has never seen, by four methods side by side.

    python examples/digits.py                       # a minute or two; needs scikit-learn beside qpeft
    python examples/digits.py --out elsewhere       # the same folder again goes on where it stopped

scikit-learn's digits are 1,797 images of 8 x 8 grey values. A transformer of 0.1 million numbers
learns 0 to 4 from the beginning. Then it is frozen, gets a new head for 5 to 9, and that head is
trained: alone, and with an adapter. Every run is a folder with a log and an adapter that stock PEFT
loads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from qpeft_lab import RunSettings, TrainResult, train

TRAIN_SHARE = 0.5

# highest learning rate and settings; each rate is the best of three on a validation split
METHODS = {
    "head": (5e-2, {}),
    "lora": (2e-3, {"r": 4, "lora_alpha": 16}),
    "qpa": (1e-3, {"r": 4, "lora_alpha": 16}),
    "quantum_peft": (1e-3, {"r": 8, "lora_alpha": 16}),
}


def write_digits(folder: Path) -> None:
    """Three files of images and labels: 0 to 4, and 5 to 9 to train and to test on.

    In the data set's own order: digits that follow one another may be by one hand, which should not
    be on both sides.
    """
    images, labels = load_digits(return_X_y=True)
    images = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    low, high = np.flatnonzero(labels < 5), np.flatnonzero(labels >= 5)
    n_train = round(TRAIN_SHARE * len(high))
    parts = {"low": low, "high-train": high[:n_train], "high-test": high[n_train:]}
    for name, chosen in parts.items():
        rows = {"image": [Image.fromarray(images[i]) for i in chosen], "label": labels[chosen]}
        Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")


def write_untrained(folder: Path) -> None:
    """A transformer as it is drawn: 16 patches of 2 x 2 pixels, 4 layers of width 64."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=5,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(do_resize=False, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)


def train_base(out: Path, steps: int) -> Path:
    """The folder of a transformer that knows 0 to 4: an ordinary Hugging Face model."""
    write_untrained(out / "untrained")
    settings = RunSettings(
        task="image-classification",
        model=str(out / "untrained"),
        data=str(out / "low.parquet"),
        method="full",
        steps=steps,
        batch_size=32,
        lr=1e-3,
        out=str(out / "base"),
    )
    return train(settings).exported


def adapt(out: Path, base: Path, method: str, steps: int) -> TrainResult:
    """Train a new head for 5 to 9 on the frozen base, with the adapter of `method`."""
    lr, method_settings = METHODS[method]
    settings = RunSettings(
        task="image-classification",
        model=str(base),
        data=str(out / "high-train.parquet"),
        eval_data=str(out / "high-test.parquet"),
        method=method,
        method_settings=method_settings,
        steps=steps,
        batch_size=32,
        lr=lr,
        out=str(out / method),
    )
    return train(settings)


def show(results: dict[str, TrainResult]) -> None:
    n_head = results["head"].trainable_head
    shown = Table(
        "method",
        "trained parameters",
        "accuracy",
        "95 % interval",
        title="Digits 5 to 9, unseen images",
    )
    for method, result in results.items():
        accuracy, low, high = (
            result.after.metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        n_adapter = result.trainable - result.trainable_head
        shown.add_row(
            method, f"{n_head} + {n_adapter:,}", f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}"
        )
    Console().print(
        shown, "Trained parameters: the new head's, which all methods train, + the adapter's."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("digits-run"), help="where data, base and runs go"
    )
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each method")
    parser.add_argument("--base-steps", type=int, default=300, help="optimiser steps of the base")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_digits(arguments.out)
    base = train_base(arguments.out, arguments.base_steps)
    show({method: adapt(arguments.out, base, method, arguments.steps) for method in METHODS})


if __name__ == "__main__":
    main()
