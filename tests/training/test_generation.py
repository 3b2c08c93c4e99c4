"""Generated texts: equal for every batch size, and equal to a loop over tokens or the best of all texts."""

import copy
import itertools

import pytest
import tiny_models
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from qpeft.core.base_model import load_model, load_tokenizer
from qpeft.errors import ConfigError, DataError
from qpeft.training.decoding import Decoding
from qpeft.training.generation import decode, generate_texts

PROMPTS = ["The", "Return a new array of the given shape", "A", "If the file does not exist,", "The value of a is"]
LM = {"task_type": "CAUSAL_LM"}
ADAPTERS = {
    "none": None,
    "lora": lambda: LoraConfig(**LM, target_modules="all-linear", r=2),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=4),
    "prompt": lambda: PromptTuningConfig(**LM, num_virtual_tokens=4),
}


@pytest.fixture(scope="module")
def embedded():
    from qpeft.demo import base_path

    path = str(base_path())
    return load_model(path).eval(), load_tokenizer(path)


def moved(base, adapter):
    if ADAPTERS[adapter] is None:
        return base
    model = get_peft_model(copy.deepcopy(base), ADAPTERS[adapter]())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


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
    one, three, all_at_once = (generate_texts(model, tokenizer, PROMPTS, Decoding(10), batch_size=n) for n in (1, 3, 8))
    assert one == three == all_at_once
    assert len(set(one)) > 1


@pytest.mark.parametrize("adapter", ["none", "lora", "prompt"])
def test_generation_is_greedy(embedded, adapter):
    base, tokenizer = embedded
    model = moved(base, adapter)
    for prompt, text in zip(PROMPTS, generate_texts(model, tokenizer, PROMPTS, Decoding(8)), strict=True):
        assert prompt + text == loop(model, tokenizer, prompt, 8)


def test_generation_stops_at_the_end_token(embedded):
    base, tokenizer = embedded
    model = copy.deepcopy(base)
    free = generate_texts(model, tokenizer, PROMPTS[:1], Decoding(6))[0]
    third = tokenizer(PROMPTS[0] + free)["input_ids"][len(tokenizer(PROMPTS[0])["input_ids"]) + 2]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    cut = generate_texts(model, tokenizer, PROMPTS[:1], Decoding(6))[0]
    assert free.startswith(cut)
    assert 0 < len(cut) < len(free)


@pytest.mark.parametrize(("prompt", "n"), [("", 4), ("The value", 300)])
def test_too_long_prompt_raises(embedded, prompt, n):
    base, tokenizer = embedded
    with pytest.raises(DataError, match="the prompt"):
        generate_texts(base, tokenizer, [prompt], Decoding(n))


def test_virtual_tokens_count_towards_the_context(embedded):
    base, tokenizer = embedded
    n = len(tokenizer("The")["input_ids"])
    assert generate_texts(base, tokenizer, [], Decoding(4)) == []
    with pytest.raises(DataError, match="context"):
        generate_texts(moved(base, "prompt"), tokenizer, ["The"], Decoding(256 - n - 3))


END = 0


def every_text(model, prompt, n):
    """Every sequence of at most `n` new tokens of a tiny vocabulary, up to its end token, with its log-likelihood."""
    size = model.config.vocab_size
    for tokens in itertools.product(range(size), repeat=n):
        text = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *text]])
            likely = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        yield text, likely[range(len(text)), list(text)].sum().item()


@pytest.mark.parametrize("length_penalty", [0.0, 0.8, 2.0])
def test_search_with_a_beam_for_every_prefix_finds_the_best_text(length_penalty):
    torch.manual_seed(3)
    model = tiny_models.filled(tiny_models.llama(vocab_size=5), "beams")
    prompt, n = [1, 2], 3
    best = max(every_text(model, prompt, n), key=lambda found: found[1] / len(found[0]) ** length_penalty)[0]
    ids = torch.tensor([prompt])
    decoding = Decoding(n, num_beams=25, length_penalty=length_penalty)
    found = decode(model, ids, torch.ones_like(ids), decoding, end=END)[0].tolist()
    assert tuple(found[: len(best)]) == best
    assert set(found[len(best) :]) <= {END}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_beams_find_texts_at_least_as_likely_for_every_batch_size(embedded, adapter):
    base, tokenizer = embedded
    model = moved(base, adapter)
    decoding = Decoding(8, num_beams=4, length_penalty=0.8)
    texts = generate_texts(model, tokenizer, PROMPTS, decoding, batch_size=2)
    assert texts == generate_texts(model, tokenizer, PROMPTS, decoding, batch_size=5)
    assert texts != generate_texts(model, tokenizer, PROMPTS, Decoding(8))


def test_ngrams_of_the_prompt_may_be_repeated_but_not_new_ones():
    model = tiny_models.filled(tiny_models.llama(vocab_size=5, max_position_embeddings=64), "once")
    ids = torch.tensor([[token for pair in itertools.product(range(5), repeat=2) for token in pair]])  # all pairs
    free, once = (
        decode(model, ids, torch.ones_like(ids), Decoding(12, no_repeat_ngram_size=n))[0].tolist() for n in (0, 2)
    )
    assert len(set(itertools.pairwise(free))) < len(free) - 1
    assert len(set(itertools.pairwise(once))) == len(once) - 1 > 1
    assert once[:2] == free[:2] != [0, 0]


def test_length_penalty_without_beams_raises():
    with pytest.raises(ConfigError, match="length_penalty is for beam search; set num_beams above 1"):
        Decoding(length_penalty=0.8).check()
    with pytest.raises(ConfigError, match="num_beams must be at least 1"):
        Decoding(num_beams=0).check()


@pytest.mark.long
def test_texts_of_a_trained_model_do_not_depend_on_the_batch_size(shared):
    path = str(shared / "models" / "stories260K")
    model, tokenizer = load_model(path).eval(), load_tokenizer(path)
    prompts = ["Once upon a time", "Lily", "One day, a boy named Tim went", "The dog was", "There was a big tree."]
    texts = generate_texts(model, tokenizer, prompts, Decoding(40), batch_size=5)
    assert texts == generate_texts(model, tokenizer, prompts, Decoding(40), batch_size=2)
    assert prompts[0] + texts[0] == loop(model, tokenizer, prompts[0], 40)
