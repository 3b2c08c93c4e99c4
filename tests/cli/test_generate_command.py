"""`qpeft generate`: the text that transformers generates, with and without an adapter."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft

PROMPT = "a bird said"


@pytest.fixture
def expected(base_folder):
    """The prompt and its continuation by transformers."""

    def continued(adapter=None, **options):
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
        if adapter:
            model = qpeft.load(model, adapter).eval()
        inputs = tokenizer(PROMPT, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
        return tokenizer.decode(out[0], skip_special_tokens=True) + "\n"

    return continued


@pytest.fixture
def written(qpeft_cli):
    def call(*arguments, **options):
        result = qpeft_cli("generate", *arguments, "--max-new-tokens", 12, **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_text_is_that_of_transformers(written, expected, base_folder, adapter_folder, tmp_path):
    base, adapted, beams = expected(), expected(adapter_folder), expected(num_beams=3, length_penalty=0.8)
    assert len({base, adapted, beams}) == 3
    assert written("--model", base_folder, "--prompt", PROMPT) == base
    assert written("--adapter", adapter_folder, "--prompt", PROMPT) == adapted  # which names its base
    (tmp_path / "adapter").symlink_to(adapter_folder)  # a run folder
    assert written("--adapter", tmp_path, input=PROMPT + "\n") == adapted
    search = ("--num-beams", 3, "--length-penalty", 0.8)
    assert written("--model", base_folder, "--prompt", PROMPT, *search) == beams


def test_sampled_text_depends_on_the_seed(written, base_folder):
    draw = ("--model", base_folder, "--prompt", PROMPT, "--temperature", 1.5)
    first, again, other = (written(*draw, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_json_has_the_prompt_and_the_new_text(answer, expected, base_folder):
    found = answer("generate", "--model", base_folder, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert found["prompt"] + found["text"] + "\n" == expected()
    assert found["adapter"] is None
