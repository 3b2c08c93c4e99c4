"""A tiny model with a tokenizer, and two variants."""

import pytest
import tiny_models
from variants import VARIANTS


@pytest.fixture(params=["qpa with a network", "quantum_peft"])
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture
def tokenizer():
    return tiny_models.byte_tokenizer()


@pytest.fixture
def llama(tokenizer):
    """A random Llama for this tokenizer."""
    return tiny_models.llama(vocab_size=len(tokenizer))
