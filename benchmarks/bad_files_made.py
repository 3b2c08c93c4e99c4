"""The valid files that `bad_files.py` damages: an adapter of every method, runs, a study, data, for a tiny base."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from PIL import Image
from pyarrow import Table, parquet
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.training import TrainSettings, train

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from tiny_models import llama, save_base

WIDTHS = {"base": 16, "wide": 24}
OTHERS = {"seed1": {"seed": 1}, "bigger": {"size": 4}, "wide": {"base": "wide"}}  # adapters to swap files with
EXPORTED = ("qpa", "quantum_peft", "sora")
WORDS = ("the", "king", "went", "into", "the", "golden", "wood", "and", "said", "how", "well", "bird", "sings")


def make_all(folder: Path) -> None:
    """All files, in `folder`, unless they exist."""
    if (folder / "made").exists():
        return
    for name, width in WIDTHS.items():
        _make_base(folder / name, width)
    for method in METHODS:
        _make_adapters(folder, method)
    _make_data(folder)
    _make_runs(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(_study(folder), sort_keys=False))
    (folder / "made").touch()


def load_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def text(n_words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n_words))


def _make_base(folder: Path, width: int) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "hidden_size": width, "num_key_value_heads": 2, "max_position_embeddings": 64}
    save_base(folder, llama(**sizes, initializer_range=0.2))


# -- adapters

_QPA = {"hidden": (6, 5), "chunk_size": 32, "n_layers": 3}
_TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
_LORA: dict[str, Any] = {**_TASK, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def _attached(base: Any, host: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return qpeft.attach(get_peft_model(base, host), qpeft.QPAGeneratorConfig(**_QPA, seed=seed))


def _quantum_peft(base: Any, seed: int, size: int, **settings: Any) -> Any:
    model = get_peft_model(base, qpeft.QuantumPeftConfig(**_LORA, r=size, seed=seed, **settings))
    if settings.get("frame") == "gradient":
        qpeft.fit_frames(model, [{"input_ids": torch.arange(40).view(2, 20)}])
    return model


def _sora(base: Any, seed: int, size: int) -> Any:
    model = get_peft_model(base, qpeft.SoRAConfig(**_LORA, r=size, seed=seed))
    with torch.no_grad():
        for _, _, gate in model.base_model.gates():
            gate[0] = 0.0
    return model


METHODS: dict[str, Callable[[Any, int, int], Any]] = {
    "qpa": lambda base, seed, size: get_peft_model(base, qpeft.QPAConfig(**_LORA, **_QPA, r=size, seed=seed)),
    "quantum_peft": lambda base, seed, size: _quantum_peft(base, seed, size, frame="gradient", frame_rank=8),
    "quantised": lambda base, seed, size: _quantum_peft(base, seed, size, bits=4),
    "attached_lora": lambda base, seed, size: _attached(base, LoraConfig(**_LORA, r=size), seed),
    "attached_prefix": lambda base, seed, size: _attached(
        base, PrefixTuningConfig(**_TASK, num_virtual_tokens=2 * size), seed
    ),
    "qaa": lambda base, seed, size: get_peft_model(
        base, qpeft.QAAConfig(**_TASK, target_modules=["q_proj", "v_proj"], n_layers=size, seed=seed)
    ),
    "sora": _sora,
    "bottleneck": lambda base, seed, size: get_peft_model(
        base, qpeft.BottleneckConfig(**_TASK, bottleneck_size=size, seed=seed)
    ),
}


def _make_adapters(folder: Path, method: str) -> None:
    for name, changes in {"": {}, **OTHERS}.items():
        chosen = {"base": "base", "seed": 0, "size": 2, **changes}
        model = METHODS[method](load_base(folder / chosen["base"]), chosen["seed"], chosen["size"])
        _move(model, chosen["seed"])
        place = folder / "-".join(filter(None, ["adapter", method, name]))
        qpeft.save(model, place)
        if method in EXPORTED:
            qpeft.export(model.eval(), place.with_name(place.name.replace("adapter", "exported")))


def _move(model: Any, seed: int) -> None:
    """Change all trainable parameters, as training does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_((parameter != 0) * 0.1 + 0.05 * torch.randn(parameter.shape, generator=draw))
        for name, gate in model.named_parameters():
            if "sora_gate" in name:
                gate[0] = 0.0


# -- data, runs and studies


def _make_data(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    texts = [text(12, seed) for seed in range(40)]
    labels = ["good" if i % 2 else "bad" for i in range(len(texts))]
    (data / "a.txt").write_text(text(600))
    (data / "a.jsonl").write_text("".join(json.dumps({"text": row, "n": i}) + "\n" for i, row in enumerate(texts)))
    (data / "a.json").write_text(json.dumps([{"text": row} for row in texts]))
    with (data / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "n"), *((row, i) for i, row in enumerate(texts))])
    parquet.write_table(Table.from_pydict({"text": texts, "n": list(range(len(texts)))}), data / "a.parquet")
    (data / "a.tsv").write_text("".join(f"{row}\t{label}\n" for row, label in zip(texts, labels, strict=True)))
    _make_images(data)


def _make_images(data: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 6), dtype=np.uint8)
    np.savez(data / "a.npz", images=pixels, labels=np.arange(8) % 2, names=np.array(["cat", "dog"]))
    for number, image in enumerate(pixels):
        place = data / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)


def _make_runs(folder: Path) -> None:
    train(run_settings(folder, folder / "run"))
    train(run_settings(folder, folder / "classifier", task="text-classification", data=str(folder / "data" / "a.tsv")))


def run_settings(folder: Path, out: Path, **changes: Any) -> TrainSettings:
    """A run of four steps with a checkpoint after the second."""
    usual = {"model": str(folder / "base"), "data": str(folder / "data" / "a.txt"), "steps": 4, "save_every": 2}
    small = {"r": 2, "target_modules": ["q_proj"], "chunk_size": 16, "hidden": [6, 5], "n_layers": 2}
    settings = {**usual, "batch_size": 2, "seq_len": 32, "method_settings": small, "eval_blocks": 2, **changes}
    return TrainSettings(**settings, out=str(out))


def _study(folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "title": "A tiny study",
        "question": "Does it run?",
        "base": str(folder / "base"),
        "data": str(folder / "data" / "a.txt"),
        "seeds": [0, 1],
        "reference": "lora",
        "tuning": {"grid": [0.3, 1.0]},
        "training": {"steps": 4, "batch_size": 2, "seq_len": 32, "dtype": "float32"},
        "max_hours": 1.5,
        "methods": [
            {"key": "lora", "label": "LoRA", "method": "lora", "settings": {"r": 2}},
            {"key": "qpa", "method": "qpa", "settings": {"r": 2, "chunk_size": 16}, "lr": 0.001},
            {"key": "fixed", "method": "qpa", "settings": {"r": 2, "feature_source": "random"}, "role": "control",
             "against": "qpa"},
        ],
        "blocks": [{"of": "qpa", "methods": [{"key": "small", "method": "lora", "vary": "r", "values": [1, 2]}]}],
    }  # fmt: skip
