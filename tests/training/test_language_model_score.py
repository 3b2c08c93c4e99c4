import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PromptTuningConfig, get_peft_model
from published_qpa import published_perplexity
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother

from qpeft.errors import ConfigError, DataError
from qpeft.metrics import padded_perplexity, perplexity
from qpeft.training.blocks import collate, cut
from qpeft.training.encoding import Tokens, encode
from qpeft.training.metrics import (
    LanguageModelScore,
    classification_loss,
    evaluate_language_model,
    language_model_loss,
)
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import Columns, load_examples
from qpeft.training.tasks.causal_lm import CausalLM


def random_blocks(lengths, seed=0, vocabulary=40) -> list[Tokens]:
    draw = np.random.default_rng(seed)
    return [
        Tokens(draw.integers(vocabulary, size=n), draw.random(n) < 0.8, draw.integers(0, 5, size=n)) for n in lengths
    ]


def gpt2() -> nn.Module:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            max_position_embeddings=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def test_perplexity_of_many_batches_is_not_a_mean_of_means():
    score = LanguageModelScore(nats=10 * 2.0 + 30 * 3.0, n_tokens=40, n_bytes=160)
    assert score.loss == 2.75
    assert score.perplexity == pytest.approx(15.642632, abs=5e-7)
    assert score.bits_per_byte == pytest.approx(110 / math.log(2) / 160)


class FixedLoss(nn.Module):
    """Gives every target of row r a loss of exactly `losses[r]`, by logits over two tokens."""

    def __init__(self, losses):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.losses, self.row = losses, 0

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, 2, dtype=torch.float64)
        for row in logits:
            row[:, 0] = -math.log(math.expm1(self.losses[self.row]))  # -log softmax of token 0 is the loss
            self.row += 1
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scores_are_added_by_tokens(batch_size):
    blocks = [
        Tokens(np.zeros(n + 1, dtype=np.int64), np.ones(n + 1, dtype=bool), np.ones(n + 1, dtype=np.int64))
        for n in (10, 30)
    ]
    score = evaluate_language_model(FixedLoss([2.0, 3.0]), blocks, batch_size)
    assert score.n_tokens == 40
    assert score.perplexity == pytest.approx(15.642631884188171, rel=1e-12)


def test_perplexity_overflows_to_infinity():
    assert LanguageModelScore(nats=8000.0, n_tokens=10, n_bytes=10).perplexity == math.inf


@pytest.mark.parametrize("make", [gpt2, llama])
@given(lengths=st.lists(st.integers(2, 32), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_score_does_not_depend_on_batch_size(make, lengths, seed):
    model, blocks = make().double().eval(), random_blocks(lengths, seed)
    if not sum(block.n_targets for block in blocks):
        return
    scores = [evaluate_language_model(model, blocks, batch_size).loss for batch_size in (1, 3, 7)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-9)


def test_score_is_the_sum_over_marked_tokens():
    model, (block,) = gpt2().double().eval(), random_blocks([9])
    logits = model(torch.from_numpy(block.ids)[None]).logits[0].log_softmax(-1)
    by_hand = -sum(logits[t - 1, block.ids[t]].item() for t in range(1, 9) if block.scored[t])
    score = evaluate_language_model(model, [block])
    assert score.nats == pytest.approx(by_hand, rel=1e-12)
    assert score.n_tokens == block.scored[1:].sum()
    assert score.n_bytes == block.n_bytes[1:][block.scored[1:]].sum()


def test_training_loss_of_an_answer_is_the_same_sum(tokenizer, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double().eval()
    rows = [
        {"prompt": "the king", "completion": " went into the wood"},
        {"prompt": "see how the golden bird", "completion": " sings"},
    ]
    blocks = cut(rows, 32, tokenizer)
    trained_on = model(**collate(blocks)).loss.item()
    nats, n = 0.0, 0
    for row in rows:
        prompt, answer = tokenizer(row["prompt"])["input_ids"], [*tokenizer(row["completion"])["input_ids"], 0]
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        nats -= sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))
        n += len(answer)
    assert trained_on == pytest.approx(nats / n, rel=1e-6)  # the library's loss is float32
    assert evaluate_language_model(model, blocks).loss == pytest.approx(nats / n, rel=1e-12)


def test_scoring_keeps_the_mode_and_the_random_state():
    model = gpt2().train()
    state = torch.random.get_rng_state()
    evaluate_language_model(model, random_blocks([5]))
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_half_precision_is_scored_in_float32():
    model, blocks = gpt2().eval(), random_blocks([20, 30])
    exact = evaluate_language_model(model, blocks).loss
    assert evaluate_language_model(model.bfloat16(), blocks).loss == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("rows", [["the king sings", "a fox"], ["", "the king\n", "", "", "a fox sings", "", "x"]])
def test_padded_perplexity_is_the_published_one(tokenizer, tiny_model, rows):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    published = published_perplexity(tiny_model, rows, length=12)
    for batch_size in (1, 3):
        assert padded_perplexity(model, rows, tokenizer, 12, batch_size) == pytest.approx(published, rel=1e-5)
    text_only = evaluate_language_model(model, encode([{"text": row} for row in rows if row], tokenizer)).perplexity
    assert text_only != pytest.approx(published, rel=1e-3)


def test_perplexity_of_texts_is_that_of_their_tokens_joined_by_end_of_text(tokenizer, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    texts = ["the king went into the wood", "", "a fox sings"]
    ids = [token for text in texts for token in (tokenizer.eos_token_id, *tokenizer(text)["input_ids"])][1:]
    nats, n = 0.0, 0
    for start in range(0, len(ids), 8):
        block = torch.tensor([ids[start : start + 8]])
        if block.shape[1] > 1:
            nats, n = nats + model(block, labels=block).loss.item() * (block.shape[1] - 1), n + block.shape[1] - 1
    for batch_size in (1, 3):
        assert perplexity(model, texts, tokenizer, 8, batch_size) == pytest.approx(math.exp(nats / n), rel=1e-5)


@pytest.mark.parametrize("texts", [[], [""]])
def test_perplexity_of_nothing_is_refused(tokenizer, tiny_model, texts):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(DataError, match="no token to score"):
        perplexity(model, texts, tokenizer)
    with pytest.raises(DataError, match="no rows to score"):
        padded_perplexity(model, [], tokenizer)


@pytest.mark.parametrize("score", [perplexity, padded_perplexity])
def test_perplexity_takes_blocks_of_the_context_and_refuses_other_numbers(score, tokenizer, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    context, texts = model.config.max_position_embeddings, ["the king went into the wood " * 100]
    assert context < 512
    assert score(model, texts, tokenizer) == score(model, texts, tokenizer, context)
    for seq_len in (0, 1, -1, 2.5, "8", True, context + 1):
        with pytest.raises(ConfigError, match="seq"):
            score(model, texts, tokenizer, seq_len)
    for batch_size in (0, -1, 2.5, "8", None):
        with pytest.raises(ConfigError, match="batch_size"):
            score(model, texts, tokenizer, 8, batch_size)
    with pytest.raises(DataError, match="valid text"):
        score(model, ["\ud800 the king"], tokenizer)


def test_perplexity_leaves_room_for_virtual_tokens(tokenizer, tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    context = base.config.max_position_embeddings
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    texts = ["the king went into the wood " * 100]
    assert perplexity(model, texts, tokenizer) == perplexity(model, texts, tokenizer, context - 5)
    with pytest.raises(ConfigError, match="minus 5 virtual tokens"):
        perplexity(model, texts, tokenizer, context - 4)


@pytest.mark.parametrize("virtual_tokens", [0, 3])
def test_smoothed_loss_is_that_of_the_trainer(tokenizer, tiny_model, virtual_tokens):
    rows = [{"prompt": "the king", "completion": " sings"}, {"prompt": "a", "completion": " fox"}]
    batch = collate(cut(rows, 16, tokenizer))
    labels = batch.pop("labels")
    outputs = AutoModelForCausalLM.from_pretrained(tiny_model).eval()(**batch)
    theirs = LabelSmoother(0.1)(outputs, labels, shift_labels=True)
    outputs.logits = torch.cat([torch.randn(2, virtual_tokens, 300), outputs.logits], dim=1)
    assert language_model_loss(outputs, labels, label_smoothing=0.1).item() == pytest.approx(theirs.item(), rel=1e-5)
    halves = language_model_loss(outputs, labels, num_items_in_batch=2 * (labels >= 0).sum(), label_smoothing=0.1)
    assert 2 * halves.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_smoothed_loss_of_classes_is_that_of_the_trainer():
    outputs, labels = SequenceClassifierOutput(logits=torch.randn(5, 3)), torch.tensor([0, 2, 1, 1, 0])
    theirs = LabelSmoother(0.2)(outputs, labels)
    assert classification_loss(outputs, labels, label_smoothing=0.2).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.* are also training data")
def test_rows_are_padded_and_scored_in_training_as_published(tiny_model, tmp_path):
    texts = ["", "the king went into the wood and said how well it sings", "", "a fox"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 5))
    asked = TrainSettings(model=str(tiny_model), data=str(tmp_path / "rows.jsonl"), out="", seq_len=8, pad_rows=True)
    task = CausalLM(asked)
    assert (len(task.train), len(task.evaluation)) == (19, 1)
    model = task.load_base().eval()
    loss = model(**task.collate(task.train[:4])).loss.item()
    assert math.exp(loss) == pytest.approx(published_perplexity(tiny_model, texts, 8), rel=1e-5)
    score = task.score(model, task.train[:4])
    assert math.exp(loss) == pytest.approx(score.perplexity, rel=1e-5)
    n_text = 7 + len(task.train[3].ids) - 1
    assert (score.n_tokens, score.n_padding) == (4 * 7, 4 * 7 - n_text)
    assert score.headline[0] == "padded perplexity"
    assert "bits per byte" not in score.described()


def test_real_model_on_a_real_text(shared):
    model = AutoModelForCausalLM.from_pretrained(shared / "models/stories260K").eval()
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    (row,) = load_examples(str(shared / "data/grimm/GrimmsFairyTales.txt"), "train", Columns())
    blocks = cut([{"text": row["text"][:4000]}], 256, tokenizer)
    blocks[1] = blocks[1].cut(0, 77)
    scores = [evaluate_language_model(model, blocks, size) for size in (1, 3, 7)]
    assert [score.loss for score in scores] == pytest.approx([scores[0].loss] * 3, rel=1e-6)
    ids = torch.from_numpy(blocks[0].ids)[None]
    assert evaluate_language_model(model, blocks[:1]).loss == pytest.approx(
        model(ids, labels=ids).loss.item(), rel=1e-6
    )


def test_unknown_tokens_are_counted_and_reported(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "the": 2, "king": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    (tmp_path / "text.txt").write_text("the king sings the " * 6)
    asked = TrainSettings(model=str(folder), data=str(tmp_path / "text.txt"), out="", seq_len=8)
    with pytest.warns(UserWarning, match=r"25\.0% of the tokens of .*text\.txt are unknown to the tokenizer \(<unk>\)"):
        task = CausalLM(asked, labels=())
    score = task.score(task.load_base())
    assert (score.n_tokens, score.n_unknown) == (3 * 7, 3 * 2)
    assert "6 unknown tokens (28.6%)" in score.size
