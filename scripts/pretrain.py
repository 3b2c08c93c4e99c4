"""Train one of the base models of our studies, and its tokenizer, from documentation on this
machine.

    python scripts/build_base.py embedded --out DIR    # like the one that is part of qpeft: an hour
    python scripts/build_base.py llama10m --out DIR    # 10 million parameters, 4,096 tokens: an hour on two cores
    python scripts/build_base.py bytes1m --out DIR     # 1 million parameters, 256 bytes: an hour

Checkpoints are in DIR.partial, and the same command resumes from the last one. DIR is created at
the end.
"""

import argparse
import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from qpeft.files import write_json
from qpeft.folders import replace_folder
from qpeft_lab.base_model import load_model, load_tokenizer
from qpeft_lab.data.text import cut
from qpeft_lab.demo import corpus
from qpeft_lab.demo.packaged import PACKAGED
from qpeft_lab.training.score import evaluate_language_model

END = "<|endoftext|>"  # token 0, which begins and ends a text
PADDING = "<|pad|>"  # token 1


@dataclass(frozen=True)
class Recipe:
    """The shape of the model and its training; the defaults are those of the embedded base."""

    architecture: str = "gpt2"
    width: int = 128
    layers: int = 5
    heads: int = 4
    context: int = 256
    vocabulary: int = 4096
    dropout: float = 0.1
    passes: int = 20
    batch: int = 8
    lr: float = 2e-3
    warmup: float = 0.05
    final_lr: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0
    threads: int = 1  # sums depend on it
    bf16: bool = False  # products of matrices in bfloat16


PACKAGES = (
    "scipy",
    "sklearn",
    "pandas",
    "networkx",
    "matplotlib",
    "nltk",
)  # whose documentation others are trained on
_OTHER = {"dropout": 0.0, "passes": 1}
RECIPES: dict[str, Recipe] = {
    "embedded": Recipe(),
    "llama10m": Recipe(
        "llama", width=256, layers=10, heads=8, lr=1e-3, threads=2, bf16=True, **_OTHER
    ),
    "bytes1m": Recipe("gpt_neox", vocabulary=258, **_OTHER),  # every byte, and two special tokens
}


def build(out: Path, recipe: Recipe, corpora: Mapping[str, list[str]]) -> None:
    """Train on 90 % of the first corpus; score its held-out parts and those of the others; write
    all to `out`.
    """
    if out.exists():
        raise SystemExit(f"{out} exists; name another folder with --out, or remove it")
    name, *_ = corpora
    train, validation, _ = split(corpora[name])
    tokenizer = train_tokenizer(train, recipe)
    model = pretrain(
        recipe, _blocks(tokenizer, train, recipe), out.with_name(f"{out.name}.partial")
    )
    for part in ("resid_pdrop", "embd_pdrop"):
        if hasattr(model.config, part):
            setattr(model.config, part, 0.0)  # dropout would be noise when adapters are compared
    with replace_folder(out) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        held_out = {
            f"{name}_validation": validation,
            **{f"{key}_test": split(corpora[key]).test for key in corpora},
        }
        packages = {
            package: version(package)
            for package in ("torch", "transformers", "tokenizers", "numpy")
        }
        facts = {
            "recipe": asdict(recipe),
            "corpus": {"documents": len(corpora[name]), "sha256": digest(corpora[name])},
            "versions": {"python": platform.python_version(), **packages},
            "n_parameters": model.num_parameters(),
            "scores": {key: _score(folder, docs) for key, docs in held_out.items()},
        }
        write_json(folder / "training.json", facts)


class Split(NamedTuple):
    """The documents of a corpus in three disjoint parts, each in the order of the corpus."""

    train: list[str]
    validation: list[str]
    test: list[str]


def digest(docs: Iterable[str]) -> str:
    """SHA-256 (hex) of the documents in order, each followed by a zero byte."""
    sha = hashlib.sha256()
    for text in docs:
        sha.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return sha.hexdigest()


def split(docs: Iterable[str], held_out: float = 0.05) -> Split:
    """Split documents into train, validation and test; the last two receive a fraction `held_out`
    each.

    The hash of a document decides, so its part does not depend on other documents or on the version
    of the library.
    """
    parts = Split([], [], [])
    for text in docs:
        u = (
            int.from_bytes(
                hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big"
            )
            / 2**64
        )
        parts[1 if u < held_out else 2 if u < 2 * held_out else 0].append(text)
    return parts


def train_tokenizer(docs: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text survives encoding and decoding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        docs,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary, special_tokens=[END, PADDING], initial_alphabet=alphabet
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def pretrain(recipe: Recipe, blocks: list[dict[str, np.ndarray]], work: Path) -> Any:
    """A new model trained on `blocks`, or resumed from the last checkpoint in `work`; float32."""
    set_seed(recipe.seed)
    steps = recipe.passes * -(-len(blocks) // recipe.batch)
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.passes,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_lr},
        warmup_steps=round(recipe.warmup * steps),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        seed=recipe.seed,
        bf16=recipe.bf16,
        save_steps=200,
        save_total_limit=2,
        use_cpu=True,
        report_to=[],
    )
    model = AutoModelForCausalLM.from_config(config_of(recipe))
    trainer = Trainer(model, arguments, train_dataset=blocks)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    return trainer.model


def config_of(recipe: Recipe) -> PretrainedConfig:
    """The config of the new model; its output head shares the embedding in GPT-2 only."""
    usual = {
        "vocab_size": recipe.vocabulary,
        "max_position_embeddings": recipe.context,
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    own: dict[str, dict[str, Any]] = {
        "gpt2": {
            "resid_pdrop": recipe.dropout,
            "embd_pdrop": recipe.dropout,
            "attn_pdrop": 0.0,  # with dropout, CPUs lose the fused attention
            "activation_function": "gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        },
        "llama": {"intermediate_size": recipe.width * 11 // 4, "num_key_value_heads": recipe.heads},
        "gpt_neox": {"intermediate_size": 4 * recipe.width},
    }
    return AutoConfig.for_model(recipe.architecture, **usual, **own[recipe.architecture])


def _blocks(
    tokenizer: PreTrainedTokenizerFast, docs: list[str], recipe: Recipe
) -> list[dict[str, np.ndarray]]:
    """The documents in random order, each followed by token 0, in blocks of `context` tokens."""
    encoded = tokenizer(docs, verbose=False)["input_ids"]
    order = np.random.default_rng(recipe.seed).permutation(len(docs))
    chain = np.concatenate([[*encoded[i], 0] for i in order])
    whole = chain[: len(chain) // recipe.context * recipe.context].reshape(-1, recipe.context)
    return [{"input_ids": block, "labels": block} for block in whole]


def _score(folder: Path, docs: list[str]) -> dict:
    """The score of the saved weights, in float32, on blocks of the whole context."""
    model = load_model(str(folder))
    tokenizer = load_tokenizer(str(folder))
    blocks = cut([{"text": text} for text in docs], model.config.max_position_embeddings, tokenizer)
    return {**evaluate_language_model(model, blocks).to_dict(), "sha256": digest(docs)}


def main() -> None:
    """Train the base that the command line names."""
    texts: dict[str, Callable[[], list[str]]] = {
        "stdlib": corpus.stdlib_docs,
        "numpy": corpus.numpy_docs,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", choices=(*RECIPES, *PACKAGED))
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    asked = parser.parse_args()
    if asked.base != "embedded":
        texts = {"packages": lambda: corpus.package_docs(*PACKAGES), **texts}
    torch.set_num_threads(RECIPES[asked.base].threads)
    build(asked.out, RECIPES[asked.base], {name: read() for name, read in texts.items()})
