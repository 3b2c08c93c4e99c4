"""A tiny base model in a folder, and compact adapters on it."""

import warnings
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of width 16 with a byte-level tokenizer; its output head is tied to the embedding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("base")
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_adapter(base_folder: Path, folder: Path, **settings) -> Path:
    """A QPA adapter that has left its start, saved compactly."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    import qpeft

    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    config = qpeft.QPAConfig(r=2, hidden=(6, 5), chunk_size=32, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def adapter_folder(base_folder, tmp_path_factory) -> Path:
    """QPA on every linear map of the tiny base."""
    return save_adapter(base_folder, tmp_path_factory.mktemp("compact"), target_modules="all-linear")


@pytest.fixture(scope="session")
def head_adapter_folder(base_folder, tmp_path_factory) -> Path:
    """QPA on the tied output head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on tied heads
        return save_adapter(base_folder, tmp_path_factory.mktemp("head"), target_modules=["lm_head"])
