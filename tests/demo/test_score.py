import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from qpeft.demo.pretrain import Recipe, new_model
from qpeft.demo.score import Score, score
from qpeft.demo.tokenizer import train_tokenizer

DOCS = [f"Document {i} says {'many ' * (i % 7)}things about number {i * i}." for i in range(40)]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return new_model(Recipe(width=16, layers=1, heads=2, context=32, vocabulary=300))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCS, vocabulary=300, context=32)


def test_perplexity_weights_tokens_not_batches():
    assert Score(nats=10 * 2.0 + 30 * 3.0, tokens=40, n_bytes=100).perplexity == pytest.approx(15.642632)


def test_bits_per_byte_of_a_uniform_guess_is_eight():
    assert Score(nats=50 * math.log(256), tokens=50, n_bytes=50).bits_per_byte == pytest.approx(8)


def test_score_equals_a_token_by_token_sum(model, tokenizer):
    chain = []
    for i, text in enumerate(DOCS):
        chain += ([tokenizer.eos_token_id] if i else []) + tokenizer(text)["input_ids"]
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(chain), 32):
            block = torch.tensor(chain[begin : begin + 32])
            logits = model.eval()(block[None]).logits[0].double().log_softmax(-1)
            nats -= sum(logits[t, block[t + 1]].item() for t in range(len(block) - 1))
            tokens += len(block) - 1
    result = score(model, tokenizer, DOCS)
    assert result.tokens == tokens
    assert result.nats == pytest.approx(nats, rel=1e-6)
    assert result.n_bytes == sum(len(text.encode()) for text in DOCS)


def test_scoring_leaves_the_model_in_its_mode(model, tokenizer):
    model.train()
    score(model, tokenizer, DOCS[:2])
    assert model.training
