"""Generated texts: equal for every batch size, and equal to a loop over tokens or the best of all texts."""

import copy
import itertools

import pytest
import tiny_models
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from qpeft.errors import DataError
from qpeft_lab.base_model import load_model, load_tokenizer
from qpeft_lab.demo import base_path
from qpeft_lab.training.generate import Decoding, generate, generate_texts

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
    found = []
    for decoding in (Decoding(8), Decoding(8, num_beams=4, length_penalty=0.8)):
        one, three, all_at_once = (generate_texts(model, tokenizer, PROMPTS, decoding, n) for n in (1, 3, 8))
        assert one == three == all_at_once
        found.append(one)
    greedy, beams = found
    assert greedy != beams
    for prompt, text in zip(PROMPTS, greedy if adapter != "prefix" else [], strict=adapter != "prefix"):
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


def seeded(model):
    """`model` with weights that are large enough for different continuations."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def test_ngrams_of_the_prompt_may_be_repeated_but_not_new_ones():
    model = seeded(tiny_models.llama(vocab_size=5, max_position_embeddings=64))
    ids = torch.tensor([[token for pair in itertools.product(range(5), repeat=2) for token in pair]])  # all pairs
    free, once = (
        generate(model, ids, torch.ones_like(ids), Decoding(12, no_repeat_ngram_size=n), [])[0].tolist() for n in (0, 2)
    )
    assert len(set(itertools.pairwise(free))) < len(free) - 1
    assert len(set(itertools.pairwise(once))) == len(once) - 1 > 1
    assert once[:2] == free[:2] != [0, 0]


@pytest.mark.parametrize(("adapter", "n"), [("none", 256), ("prompt", 252)])  # which has 4 virtual tokens
def test_text_that_does_not_fit_the_context_is_refused(embedded, adapter, n):
    base, tokenizer = embedded
    with pytest.raises(DataError, match="context"):
        generate_texts(moved(base, adapter), tokenizer, ["The"], Decoding(n))
