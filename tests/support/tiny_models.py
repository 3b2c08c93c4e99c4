"""Tiny models with their own tokenizers and processors, made here, and data for them: for tests of
whole runs.
"""

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

torch.set_num_threads(1)

CONTEXT = 64
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_WORDS = "the a king queen golden bird fox went into wood and said see how well it sings at night"


def make_text(n_words: int, seed: int = 0) -> str:
    """Reproducible sentences."""
    draw = random.Random(seed)
    words = _WORDS.split()
    return " ".join(draw.choice(words) + ("." if i % 9 == 8 else "") for i in range(n_words))


def gpt2(**changes) -> GPT2LMHeadModel:
    """A random GPT-2 (Conv1D, tied head): width 16, 2 layers, 50 tokens, no dropout."""
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    fixed = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **fixed, **changes})).eval()


def llama(**changes) -> LlamaForCausalLM:
    """A random Llama (Linear, untied head): width 16, 2 layers, 50 tokens."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    fixed = {"tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **fixed, **changes})).eval()


def save_base(folder: Path, model) -> Path:
    """The model, and a tokenizer of bytes."""
    byte_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte and an end; no merges."""
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", bos_token="<end>", pad_token="<end>"
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer GPT-2 of width 16 with dropout, and a byte-level tokenizer of 300
    tokens.
    """
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
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    gpt2(vocab_size=300, n_positions=CONTEXT, **dropout).save_pretrained(folder)
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


_OPINIONS = {"good": "fine lovely", "bad": "dull grey"}


def opinions(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` short texts, each with one word that gives its class away, and the class."""
    draw = random.Random(seed)
    words = _WORDS.split()
    rows = []
    for i in range(n):
        name = ("bad", "good")[i % 2]
        text = draw.choices(words, k=draw.randint(1, 5))
        text.insert(draw.randrange(len(text) + 1), draw.choice(_OPINIONS[name].split()))
        rows.append((" ".join(text), name))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{text}\t{name}\n" for text, name in [("text", "label"), *rows]))
    return path


@pytest.fixture
def opinion_files(tmp_path: Path) -> tuple[Path, Path]:
    """Texts of two classes to train on, and others to be scored on."""
    return write_tsv(tmp_path / "train.tsv", opinions(96)), write_tsv(
        tmp_path / "dev.tsv", opinions(40, seed=1)
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer BERT of width 16 without dropout, a masked language model, and a
    tokenizer of words.
    """
    folder = tmp_path_factory.mktemp("tiny_encoder")
    words = sorted({*_WORDS.split(), *" ".join(_OPINIONS.values()).split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    made.save_pretrained(folder)
    torch.manual_seed(0)
    fixed = {**SHAPE, "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **fixed, **dropout)).save_pretrained(
        folder
    )
    return folder


def make_vit(folder: Path, **changes) -> Path:
    """A random ViT for images of 8 x 8, and its image processor."""
    torch.manual_seed(0)
    config = ViTConfig(
        **{**SHAPE, "image_size": 8, "patch_size": 4, "initializer_range": 0.2, **changes}
    )
    ViTForImageClassification(config).save_pretrained(folder)
    half = [0.5] * config.num_channels
    size = dict.fromkeys(("height", "width"), config.image_size)
    ViTImageProcessorPil(size=size, image_mean=half, image_std=half).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer ViT of width 16 with three channels, its image processor, and a head
    for two classes.
    """
    return make_vit(tmp_path_factory.mktemp("tiny_vit"))
