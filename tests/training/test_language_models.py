"""Language models in a run: scores and losses are means over tokens, and generated texts do not
depend on the batch.
"""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import gpt2, llama
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother
from variants import move

import qpeft
from qpeft.errors import ConfigError, DataError
from qpeft_lab.base_model import load_model, load_tokenizer
from qpeft_lab.data import text as texts_module
from qpeft_lab.data.text import Tokens, collate, cut
from qpeft_lab.demo import base_path
from qpeft_lab.settings import RunSettings
from qpeft_lab.training.generate import Decoding, generate, generate_texts, refuse_lost_prefix
from qpeft_lab.training.score import evaluate_language_model, mean_nats, regression_loss
from qpeft_lab.training.tasks import CausalLM


def random_blocks(lengths, seed=0) -> list[Tokens]:
    draw = np.random.default_rng(seed)
    return [
        Tokens(
            draw.integers(40, size=n),
            draw.random(n) < 0.8,
            draw.integers(0, 5, size=n),
            np.ones(n, dtype=bool),
        )
        for n in lengths
    ]


@pytest.mark.parametrize("make", [gpt2, llama])
@given(lengths=st.lists(st.integers(2, 32), min_size=1, max_size=8), seed=st.integers(0, 99))
@example(lengths=[3], seed=60)  # none of its tokens is marked by chance
@settings(max_examples=8)
def test_score_is_the_sum_over_marked_tokens_for_every_batch_size(make, lengths, seed):
    torch.manual_seed(1)
    model = make().double().train()
    blocks = random_blocks(lengths, seed)
    blocks[0].scored[1] = True  # a task refuses data without a token to score
    nats = 0.0
    for block in blocks:
        with torch.no_grad():
            logits = model(torch.from_numpy(block.ids)[None]).logits[0].log_softmax(-1)
        nats -= sum(
            logits[t - 1, block.ids[t]].item() for t in range(1, len(block.ids)) if block.scored[t]
        )
    for batch_size in (1, 3, 7):
        score = evaluate_language_model(model, blocks, batch_size)
        assert model.training  # as before
        assert score.metrics["perplexity"] == pytest.approx(math.exp(score.loss))
        n_bytes = sum(block.n_bytes[1:][block.scored[1:]].sum() for block in blocks)
        assert score.n_scored == sum(block.scored[1:].sum() for block in blocks)
        assert score.loss * score.n_scored == pytest.approx(nats, rel=1e-9)
        assert score.metrics.get("bits_per_byte", 0) * n_bytes * math.log(2) == pytest.approx(
            nats if n_bytes else 0
        )


def test_training_loss_of_an_answer_is_the_score(tokenizer, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double().eval()
    rows = [
        {"prompt": "the king", "completion": " went into the wood"},
        {"prompt": "see how the golden bird", "completion": " sings"},
    ]
    blocks = cut(rows, 32, tokenizer)
    nats = 0.0
    n = 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [
            *tokenizer(row["completion"])["input_ids"],
            0,
        ]
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        nats -= sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))
        n += len(answer)

    # the library's loss is float32
    assert model(**collate(blocks)).loss.item() == pytest.approx(nats / n, rel=1e-6)
    assert evaluate_language_model(model, blocks).loss == pytest.approx(nats / n, rel=1e-12)


def published_perplexity(folder, rows, length) -> float:
    """That of QPA's published code: each row is padded to `length` with the end of a text, which is
    scored.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    options = {
        "padding": "max_length",
        "truncation": True,
        "max_length": length,
        "return_tensors": "pt",
    }
    losses = []
    with torch.no_grad():
        for row in rows:
            batch = tokenizer([row], **options)
            ids = batch["input_ids"].long()
            mask = batch["attention_mask"].long()
            losses.append(model(input_ids=ids, attention_mask=mask, labels=ids.clone()).loss.item())
    return math.exp(sum(losses) / len(losses))


def test_rows_are_padded_and_scored_in_training_as_published(tiny_model, tmp_path):
    texts = ["", "the king went into the wood and said how well it sings", "", "a fox"]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts * 5)
    )
    asked = RunSettings(
        model=str(tiny_model), data=str(tmp_path / "rows.jsonl"), out="", seq_len=8, pad_rows=True
    )
    task = CausalLM(asked)

    assert len(task.train) == 19
    assert len(task.evaluation) == 1

    model = task.load_base().eval()
    loss = model(**task.collate(task.train[:4])).loss.item()
    assert math.exp(loss) == pytest.approx(published_perplexity(tiny_model, texts, 8), rel=1e-5)

    score = task.score(model, task.train[:4])
    assert score.n_scored == 4 * 7
    assert score.metrics == {"padded_perplexity": pytest.approx(math.exp(loss), rel=1e-5)}


@pytest.mark.parametrize("virtual_tokens", [0, 3])
def test_smoothed_loss_is_that_of_the_trainer(tokenizer, tiny_model, virtual_tokens):
    rows = [{"prompt": "the king", "completion": " sings"}, {"prompt": "a", "completion": " fox"}]
    batch = collate(cut(rows, 16, tokenizer))
    labels = batch.pop("labels")
    outputs = AutoModelForCausalLM.from_pretrained(tiny_model).eval()(**batch)
    theirs = LabelSmoother(0.1)(outputs, labels, shift_labels=True)
    outputs.logits = torch.cat([torch.randn(2, virtual_tokens, 300), outputs.logits], dim=1)
    ours = mean_nats(outputs, labels, label_smoothing=0.1, of_tokens=True)

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)

    outputs = SequenceClassifierOutput(logits=torch.randn(5, 3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    theirs = LabelSmoother(0.2)(outputs, labels)

    assert mean_nats(outputs, labels, label_smoothing=0.2).item() == pytest.approx(
        theirs.item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "loss, expected", [(mean_nats, cross_entropy), (regression_loss, mse_loss)]
)
def test_loss_is_a_mean_over_the_whole_step(loss, expected):
    logits, labels = (
        (torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
        if loss is mean_nats
        else torch.randn(2, 6)
    )
    whole = loss(SimpleNamespace(logits=logits), labels)
    parts = [
        loss(SimpleNamespace(logits=logits[i : i + 2]), labels[i : i + 2], torch.tensor(6))
        for i in (0, 2, 4)
    ]

    assert whole.item() == pytest.approx(expected(logits, labels).item(), rel=1e-6)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)


# generated texts

PROMPTS = [
    "The",
    "Return a new array of the given shape",
    "A",
    "If the file does not exist,",
    "The value of a is",
]
LM = {"task_type": "CAUSAL_LM"}
ADAPTERS = {
    "none": None,
    "lora": lambda: LoraConfig(**LM, target_modules="all-linear", r=2),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=4),
    "prompt": lambda: PromptTuningConfig(**LM, num_virtual_tokens=4),
}


@pytest.fixture(scope="module")
def embedded():
    path = str(base_path())
    return load_model(path).eval(), load_tokenizer(path)


def moved(base, adapter):
    if ADAPTERS[adapter] is None:
        return base
    return move(get_peft_model(copy.deepcopy(base), ADAPTERS[adapter]()))


def loop(model, tokenizer, prompt, n):
    """The likeliest token, again and again, without cache and without padding."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(n):
        with torch.no_grad():
            best = model(input_ids=ids).logits[0, -1].argmax()
        if best == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, best.view(1, 1)], 1)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_texts_do_not_depend_on_the_batch_size(embedded, adapter):
    base, tokenizer = embedded
    model = moved(base, adapter)
    found = []
    for decoding in (Decoding(8), Decoding(8, num_beams=4, length_penalty=0.8)):
        one, three, all_at_once = (
            generate_texts(model, tokenizer, PROMPTS, decoding, n) for n in (1, 3, 8)
        )
        assert one == three == all_at_once
        found.append(one)
    greedy, beams = found

    assert greedy != beams

    for prompt, text in zip(
        PROMPTS, greedy if adapter != "prefix" else [], strict=adapter != "prefix"
    ):
        assert prompt + text == loop(model, tokenizer, prompt, 8)


@pytest.mark.parametrize("of", ["tokenizer", "generation config"])
def test_generation_stops_at_every_end_token(embedded, of):
    base, tokenizer = copy.deepcopy(embedded)
    free = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(6))[0]
    third = tokenizer(PROMPTS[0] + free)["input_ids"][len(tokenizer(PROMPTS[0])["input_ids"]) + 2]
    if of == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    else:  # as in a chat model, where a turn ends with another token
        base.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    cut = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(6))[0]

    assert free.startswith(cut)
    assert 0 < len(cut) < len(free)


def test_answer_ends_before_the_mark_of_the_chat_template(embedded, monkeypatch):
    """Also where the mark is no special token, as ChatML's for a base without a template."""
    base, tokenizer = embedded
    (free,) = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(12))
    mark = free.split()[3]
    monkeypatch.setattr(texts_module, "mark_after_answer", lambda _: mark)
    (cut,) = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(12), have_template=True)

    assert cut == free[: free.index(mark)]


def test_generation_stops_at_a_mark_that_is_one_special_token(embedded, monkeypatch):
    """Which no text shows, so that what follows it would be taken for the answer."""
    base, tokenizer = copy.deepcopy(embedded)
    (free,) = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(6))
    n_prompt = len(tokenizer(PROMPTS[0])["input_ids"])
    third = tokenizer(PROMPTS[0] + free)["input_ids"][n_prompt + 2]
    mark = tokenizer.convert_ids_to_tokens(third)
    tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    monkeypatch.setattr(texts_module, "mark_after_answer", lambda _: mark)
    (cut,) = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(6), have_template=True)

    assert free.startswith(cut)
    assert 0 < len(cut) < len(free)


SETTINGS = {"num_beams": 4, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_time": 0.0}


@pytest.mark.parametrize("name", SETTINGS)
def test_generation_config_of_the_base_decides_nothing(embedded, name):
    """As chat models have one, with a repetition penalty."""
    base, tokenizer = copy.deepcopy(embedded)
    expected = generate_texts(base, tokenizer, PROMPTS, Decoding(12))
    setattr(base.generation_config, name, SETTINGS[name])
    assert generate_texts(base, tokenizer, PROMPTS, Decoding(12)) == expected
    assert getattr(base.generation_config, name) == SETTINGS[name]


def test_sampling_takes_all_tokens(embedded):
    """Not only the 50 likely ones, as transformers does by default."""
    base, tokenizer = copy.deepcopy(embedded)
    base.lm_head = torch.nn.Linear(base.config.hidden_size, base.config.vocab_size)
    base.lm_head.weight.data.zero_()  # all tokens are about equally likely
    base.lm_head.bias.data.zero_()
    base.lm_head.bias.data[:50] = 0.1
    torch.manual_seed(0)
    (text,) = generate_texts(base, tokenizer, PROMPTS[:1], Decoding(40), temperature=1.0)
    likely = {char for token in range(50) for char in str(tokenizer.decode([token]))}

    assert len({*text} - likely) > 5


def test_ngrams_of_the_prompt_may_be_repeated_but_not_new_ones():
    torch.manual_seed(1)
    model = llama(vocab_size=5, max_position_embeddings=64)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    # all pairs
    ids = torch.tensor(
        [[token for pair in itertools.product(range(5), repeat=2) for token in pair]]
    )
    free, once = (
        generate(model, ids, torch.ones_like(ids), Decoding(9, no_repeat_ngram_size=n), [])[
            0
        ].tolist()
        for n in (0, 2)
    )

    assert len(set(itertools.pairwise(free))) < len(free) - 1
    assert len(set(itertools.pairwise(once))) == len(once) - 1 > 1
    assert once[:2] == free[:2] != [0, 0]


# which has 4 virtual tokens
@pytest.mark.parametrize("adapter, n", [("none", 256), ("prompt", 252)])
def test_text_that_does_not_fit_the_context_is_refused(embedded, adapter, n):
    base, tokenizer = embedded
    with pytest.raises(DataError, match="context"):
        generate_texts(moved(base, adapter), tokenizer, ["The"], Decoding(n))


@pytest.mark.parametrize("is_generated", [False, True])
def test_texts_from_a_prefix_are_refused_where_peft_loses_it(monkeypatch, is_generated):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(llama(), config)
    if is_generated:
        qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=120))
    monkeypatch.setattr(transformers, "__version__", "5.23.0")
    refuse_lost_prefix(model)
    monkeypatch.setattr(transformers, "__version__", "5.24.0")

    with pytest.raises(ConfigError, match=r"transformers 5\.24\.0 PEFT's `generate` ignores"):
        refuse_lost_prefix(model)

    refuse_lost_prefix(get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])))
