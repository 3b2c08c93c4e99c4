"""Tiny models with each method, and a launcher of scripts in two processes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
WORDS = ("<pad>", "<eos>", "red", "green", "blue", "one", "two", "three", "is", "the", "sky", "grass", "sea", "what")
WORDS += ("colour", "?")


@pytest.fixture(params=["qpa", "quantum_peft"])
def method(request):
    return request.param


@pytest.fixture(scope="session")
def config_of():
    """A config small enough for a tiny model, by the method's key."""
    from variants import VARIANTS

    def make(method, **settings):
        variant = VARIANTS["qpa with a network" if method == "qpa" else method]
        return variant.make_config(**{"r": 4} if "r" in variant.settings else {}, **settings)

    return make


@pytest.fixture(scope="session")
def wrap(config_of):
    """`base` with an adapter of the method."""
    from peft import get_peft_model

    return lambda base, method, **settings: get_peft_model(base, config_of(method, **settings))


@pytest.fixture(scope="session")
def launch():
    """Run a launcher such as ("torch.distributed.run", ...) on a script; if it fails, its output is shown."""

    def run(launcher, script, *arguments):
        command = [sys.executable, "-m", *launcher, str(SCRIPTS / script), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]

    return run


@pytest.fixture
def script(monkeypatch):
    """One of the scripts as a module, by its name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def tokenizer():
    """One token a word; fewer words than the tiny models have tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
