import pytest
import torch
from transformers import GPT2LMHeadModel

from qpeft.demo.pretrain import Recipe, new_model
from qpeft.demo.score import score
from qpeft.demo.tokenizer import train_tokenizer

DOCS = [f"Document {i} says {'many ' * (i % 7)}things about number {i * i}." for i in range(40)]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return new_model(Recipe(width=16, layers=1, heads=2, context=32, vocabulary=300))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCS, vocabulary=300, context=32)


def test_score_equals_a_token_by_token_sum_over_whole_contexts(model, tokenizer):
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
    assert result.n_tokens == tokens
    assert result.nats == pytest.approx(nats, rel=1e-6)
