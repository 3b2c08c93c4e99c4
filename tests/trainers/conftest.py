"""A tiny model with a tokenizer, and a launcher of scripts in two processes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from variants import VARIANTS

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(params=["qpa with a network", "quantum_peft"])
def variant(request):
    return VARIANTS[request.param]


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
    return tiny_models.byte_tokenizer()


@pytest.fixture
def llama(tokenizer):
    """A random Llama for this tokenizer."""
    return tiny_models.llama(vocab_size=len(tokenizer))
