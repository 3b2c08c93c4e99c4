"""The three parts of `classification.py`: a frozen base, and labelled data that it was not trained on.

Every part writes four files: `train` and `test`, and `fit` and `validation`, a split of `train` to select learning
rates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from qpeft.core.base_model import load_model, load_tokenizer
from qpeft.demo import base_path
from qpeft.training import TrainSettings, train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import digits

Arrays = dict[str, np.ndarray]

BASELINE = "head alone"
_MAIN = (BASELINE, "LoRA r=4", "QPA r=4")
_CIFAR10 = (*_MAIN, "Quantum-PEFT r=8", "QPA r=4, no feature", "Quantum-PEFT r=8, signs for CZ")
_DIGITS = (*_CIFAR10, "Quantum-PEFT r=8, framed", "LoRA r=1", "bottleneck of 8")
_SST2 = (*_MAIN, "Quantum-PEFT r=32", "QPA r=4, no feature", "Quantum-PEFT r=32, signs for CZ")
_VIEWS = 8  # random views of each image for the training of the base
_EDGE = 4  # largest shift of a view, in pixels


class Part(NamedTuple):
    """Settings of all runs of a part."""

    task: str
    base: Path
    data: Path  # the folder with the four files
    suffix: str
    options: dict[str, Any]  # batch_size, ...
    steps: int
    tuning_steps: int
    rows: tuple[str, ...]

    def file(self, name: str) -> str:
        return str(self.data / f"{name}{self.suffix}")


def digits_part(folder: Path, _: Path) -> Part:
    """Of `examples/digits.py`: a ViT that was trained on 0 to 4 learns 5 to 9."""
    digits.write_digits(folder)
    with np.load(folder / "high-train.npz") as train_file, np.load(folder / "high-test.npz") as test_file:
        write_images(folder, dict(train_file), dict(test_file))
    base = digits.train_base(folder, steps=300)
    return Part("image-classification", base, folder, ".npz", {"batch_size": 32}, 200, 200, _DIGITS)


def cifar10_part(folder: Path, source: Path, steps: int = 1500) -> Part:
    """A ViT that is trained on the first five classes learns the last five."""
    files = {"train": source / "train_2000.npz", "test": source / "test_1000.npz"}
    arrays = {name: dict(np.load(file, allow_pickle=False)) for name, file in files.items()}
    write_images(folder, *(choose(part, part["labels"] >= 5) for part in arrays.values()))
    low = {name: choose(part, part["labels"] < 5) for name, part in arrays.items()}
    np.savez(folder / "low.npz", **views(low["train"]))
    np.savez(folder / "low-test.npz", **low["test"])
    write_untrained(folder / "untrained")
    base = TrainSettings(
        task="image-classification",
        model=str(folder / "untrained"),
        data=str(folder / "low.npz"),
        eval_data=str(folder / "low-test.npz"),
        method="full",
        steps=steps,
        batch_size=32,
        lr=1e-3,
        weight_decay=0.05,
        eval_every=steps,
        out=str(folder / "base"),
    )
    return Part("image-classification", train(base).exported, folder, ".npz", {"batch_size": 16}, 600, 300, _CIFAR10)


def sst2_part(folder: Path, source: Path) -> Part:
    """A small language model that is trained on the sentences without labels learns their sentiment."""
    lines = sentences(source / "train.tsv")
    held_out = np.arange(len(lines)) % 8 == 7
    write_lines(folder / "train.tsv", lines)
    write_lines(folder / "test.tsv", sentences(source / "dev.tsv"))
    write_lines(folder / "fit.tsv", [line for line, out in zip(lines, held_out, strict=True) if not out])
    write_lines(folder / "validation.tsv", [line for line, out in zip(lines, held_out, strict=True) if out])
    write_lines(folder / "read.txt", [line.split("\t")[0] for line in lines])
    write_two_layers(folder / "two_layers")
    base = TrainSettings(
        model=str(folder / "two_layers"),
        data=str(folder / "read.txt"),
        method="full",
        steps=400,
        seq_len=128,
        lr=2e-3,
        eval_every=400,
        out=str(folder / "base"),
    )
    options = {"batch_size": 16, "seq_len": 64}
    return Part("text-classification", train(base).exported, folder, ".tsv", options, 800, 500, _SST2)


def sentences(file: Path) -> list[str]:
    """Lines `sentence TAB label`, each sentence with a full stop: a decoder classifies its last token."""
    return [line.replace("\t", " .\t") for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_two_layers(folder: Path) -> None:
    """The embedded base without its upper layers, which makes a run three times faster."""
    base = load_model(str(base_path()))
    base.transformer.h = base.transformer.h[:2]
    base.config.n_layer = 2
    base.save_pretrained(folder)
    load_tokenizer(str(base_path())).save_pretrained(folder)


def write_images(folder: Path, train_part: Arrays, test_part: Arrays) -> None:
    """The four files; every fourth training image is for validation."""
    held_out = np.arange(len(train_part["labels"])) % 4 == 3
    fit, validation = choose(train_part, ~held_out), choose(train_part, held_out)
    for name, part in {"train": train_part, "test": test_part, "fit": fit, "validation": validation}.items():
        np.savez(folder / f"{name}.npz", **part)


def choose(arrays: Arrays, chosen: np.ndarray) -> Arrays:
    """The chosen images (n,) with their labels, and the names of all classes."""
    return {name: values if name == "names" else values[chosen] for name, values in arrays.items()}


def views(arrays: Arrays) -> Arrays:
    """Each image in several random shifts, half of them mirrored."""
    draw = np.random.default_rng(0)
    padded = np.pad(arrays["images"], ((0, 0), (_EDGE, _EDGE), (_EDGE, _EDGE), (0, 0)), mode="reflect")
    side, shown = arrays["images"].shape[1], []
    for image in np.repeat(padded, _VIEWS, 0):
        (top, left), mirrored = draw.integers(0, 2 * _EDGE + 1, 2), draw.integers(2)
        view = image[top : top + side, left : left + side]
        shown.append(view[:, ::-1] if mirrored else view)
    return {**arrays, "images": np.stack(shown), "labels": np.repeat(arrays["labels"], _VIEWS)}


def write_untrained(folder: Path) -> None:
    """A random ViT with 0.3 million parameters: 64 patches of 4 x 4 pixels, 4 layers of width 96."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, **sizes, num_labels=5)).save_pretrained(folder)
    ViTImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


PARTS: dict[str, Callable[[Path, Path], Part]] = {"digits": digits_part, "cifar10": cifar10_part, "sst2": sst2_part}
