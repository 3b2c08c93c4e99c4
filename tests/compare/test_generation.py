"""Generated texts: equal for every batch size, and equal to a loop over tokens."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from qpeft.compare.measurements.generation import generate_texts
from qpeft.errors import DataError
from qpeft.training.base_model import load_model, load_tokenizer

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
    one, three, all_at_once = (generate_texts(model, tokenizer, PROMPTS, 10, batch_size=n) for n in (1, 3, 8))
    assert one == three == all_at_once
    assert len(set(one)) > 1


@pytest.mark.parametrize("adapter", ["none", "lora", "prompt"])
def test_generation_is_greedy(embedded, adapter):
    base, tokenizer = embedded
    model = moved(base, adapter)
    for prompt, text in zip(PROMPTS, generate_texts(model, tokenizer, PROMPTS, 8), strict=True):
        assert prompt + text == loop(model, tokenizer, prompt, 8)


def test_generation_stops_at_the_end_token(embedded):
    base, tokenizer = embedded
    model = copy.deepcopy(base)
    free = generate_texts(model, tokenizer, PROMPTS[:1], 6)[0]
    third = tokenizer(PROMPTS[0] + free)["input_ids"][len(tokenizer(PROMPTS[0])["input_ids"]) + 2]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    cut = generate_texts(model, tokenizer, PROMPTS[:1], 6)[0]
    assert free.startswith(cut)
    assert 0 < len(cut) < len(free)


@pytest.mark.parametrize(("prompt", "n"), [("", 4), ("The value", 300)])
def test_too_long_prompt_raises(embedded, prompt, n):
    base, tokenizer = embedded
    with pytest.raises(DataError, match="the prompt"):
        generate_texts(base, tokenizer, [prompt], n)


def test_virtual_tokens_count_towards_the_context(embedded):
    base, tokenizer = embedded
    n = len(tokenizer("The")["input_ids"])
    assert generate_texts(base, tokenizer, [], 4) == []
    with pytest.raises(DataError, match="context"):
        generate_texts(moved(base, "prompt"), tokenizer, ["The"], 256 - n - 3)


@pytest.mark.long
def test_texts_of_a_trained_model_do_not_depend_on_the_batch_size(shared):
    path = str(shared / "models" / "stories260K")
    model, tokenizer = load_model(path).eval(), load_tokenizer(path)
    prompts = ["Once upon a time", "Lily", "One day, a boy named Tim went", "The dog was", "There was a big tree."]
    texts = generate_texts(model, tokenizer, prompts, 40, batch_size=5)
    assert texts == generate_texts(model, tokenizer, prompts, 40, batch_size=2)
    assert prompts[0] + texts[0] == loop(model, tokenizer, prompts[0], 40)
