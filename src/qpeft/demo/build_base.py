"""Makes the embedded base model and its tokenizer: `python -m qpeft.demo.build_base --out DIR`.

Work in progress lies in `DIR.partial` (checkpoint and log): the same command goes on where it was killed,
with the same weights. DIR appears at the end, whole. One thread, because sums depend on the thread count.
"""

import argparse
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.demo import corpus
from qpeft.demo.model_card import model_card
from qpeft.demo.pretrain import Recipe, pretrain
from qpeft.demo.score import score
from qpeft.demo.tokenizer import train_tokenizer
from qpeft.demo.training_log import TrainingLog, read_rows
from qpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase


def build(out: Path, recipe: Recipe, stdlib: list[str], numpy: list[str]) -> None:
    """Train on the training part of `stdlib`; publish model, tokenizer and figures in the new folder `out`.

    The documents `numpy` are scored only. Raises InputError if `out` exists, CheckpointError if work in
    progress belongs to another corpus or recipe.
    """
    if out.exists():
        raise InputError(f"{out} exists already; name a new folder with --out, or remove it.")
    work = out.with_name(out.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    train, validation, test = corpus.split(stdlib)
    tokenizer = train_tokenizer(train, recipe.vocabulary, recipe.context)
    documents = tokenizer(train, verbose=False)["input_ids"]
    log = TrainingLog(work / "log.jsonl", tokenizer, validation)
    model = pretrain(recipe, documents, work / "checkpoint.safetensors", corpus.digest(train), log)
    _save(work / "model", model, tokenizer)
    held_out = {
        "stdlib_validation": validation,
        "stdlib_test": test,
        "numpy_test": corpus.split(numpy).test,
    }
    training = _figures(recipe, stdlib, read_rows(work / "log.jsonl")) | _scores(work / "model", held_out)
    (work / "model" / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
    (work / "model" / "README.md").write_text(model_card(training), encoding="utf-8")
    (work / "model").replace(out)
    shutil.rmtree(work)


def _save(path: Path, model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    # no dropout for whoever fine-tunes: adapters are to be compared, not noise
    model.config.resid_pdrop = model.config.embd_pdrop = 0.0
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)


def _figures(recipe: Recipe, docs: list[str], passes: list[dict]) -> dict:
    steps = passes[-1]["step"]
    return {
        "recipe": asdict(recipe),
        "corpus": {
            "documents": len(docs),
            "bytes": sum(len(text.encode()) for text in docs),
            "sha256": corpus.digest(docs),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        "steps": steps,
        "tokens": steps * recipe.batch * recipe.context,
        "seconds": passes[-1]["seconds"],
        "passes": passes,
    }


def _scores(path: Path, held_out: Mapping[str, list[str]]) -> dict:
    """Scores of what was written, as users will load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(path)
    scores = {
        name: score(model, tokenizer, docs).to_dict() | {"sha256": corpus.digest(docs)}
        for name, docs in held_out.items()
    }
    return {"n_parameters": model.num_parameters(), "scores": scores}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qpeft.demo.build_base", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    out = parser.parse_args().out
    import torch

    torch.set_num_threads(1)
    build(out, Recipe(), corpus.stdlib_docs(), corpus.numpy_docs())


if __name__ == "__main__":
    main()
