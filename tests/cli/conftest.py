"""A tiny base model in a folder, and compact adapters on it."""

import json
import warnings
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of width 16 with a byte-level tokenizer; its output head is tied to the
    embedding.
    """
    import tiny_models
    import torch

    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "num_key_value_heads": 2, "max_position_embeddings": 160}
    return tiny_models.save_base(
        tmp_path_factory.mktemp("base"), tiny_models.llama(**sizes, tie_word_embeddings=True)
    )


@pytest.fixture(scope="session")
def save_adapter(base_folder, adapters, tmp_path_factory):
    """The folder of a QPA adapter that has left its start, saved compactly."""

    def save(**settings):
        import torch
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, on tied heads
            base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
            model = adapters.qpa(base, r=2, chunk_size=32, **settings)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.data += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
        model.save_pretrained(str(folder := tmp_path_factory.mktemp("compact")))
        return folder

    return save


@pytest.fixture(scope="session")
def adapter_folder(save_adapter) -> Path:
    """QPA on every linear map of the tiny base."""
    return save_adapter()


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file with one sentence again and again."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The king went into the wood, and the golden bird sang of it at night. " * 60)
    return path


@pytest.fixture(scope="session")
def answer(qpeft_cli):
    """What a command that succeeds prints with --json."""

    return lambda line, *words: json.loads(qpeft_cli(line, *words, "--json", code=0).stdout)
