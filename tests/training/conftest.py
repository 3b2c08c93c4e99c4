"""A tiny model with its own tokenizer, made here, and a text for it."""

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

torch.set_num_threads(1)

CONTEXT = 64
_WORDS = "the a king queen golden bird fox went into wood and said see how well it sings at night"


def make_text(n_words: int, seed: int = 0) -> str:
    """Reproducible sentences."""
    draw, words = random.Random(seed), _WORDS.split()
    return " ".join(draw.choice(words) + ("." if i % 9 == 8 else "") for i in range(n_words))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer GPT-2 of width 16 with dropout, and a byte-level tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tiny_model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([make_text(400)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text of some 1,300 tokens in one document."""
    path = tmp_path / "tale.txt"
    path.write_text(make_text(800))
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real weights and texts that lie beside some checkouts."""
    folder = Path(__file__).parents[3] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, the folder with real models and texts")
    return folder
