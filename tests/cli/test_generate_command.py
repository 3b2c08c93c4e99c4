"""`qpeft generate`: the text that transformers generates, with and without an adapter."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft

PROMPT = "a bird said"


def expected(base_folder, adapter=None, n=12):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    if adapter:
        model = qpeft.load(model, adapter).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=n, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def written(qpeft_cli, *arguments, **options):
    result = qpeft_cli("generate", *arguments, "--max-new-tokens", 12, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_base_alone(qpeft_cli, base_folder):
    assert written(qpeft_cli, "--model", base_folder, "--prompt", PROMPT) == expected(base_folder) + "\n"


def test_base_is_read_from_the_adapter(qpeft_cli, base_folder, adapter_folder):
    text = written(qpeft_cli, "--adapter", adapter_folder, "--prompt", PROMPT)
    assert text == expected(base_folder, adapter_folder) + "\n"
    assert text != expected(base_folder) + "\n"


def test_run_folder_and_prompt_from_standard_input(qpeft_cli, base_folder, adapter_folder, tmp_path):
    (tmp_path / "adapter").symlink_to(adapter_folder)
    text = written(qpeft_cli, "--adapter", tmp_path, input=PROMPT + "\n")
    assert text == expected(base_folder, adapter_folder) + "\n"


def test_sampled_text_depends_on_the_seed(qpeft_cli, base_folder):
    draw = ("--model", base_folder, "--prompt", PROMPT, "--temperature", 1.5)
    first, again, other = (written(qpeft_cli, *draw, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_json_answer(qpeft_cli, base_folder):
    found = json.loads(written(qpeft_cli, "--model", base_folder, "--prompt", PROMPT, "--json"))
    assert found["prompt"] + found["text"] == expected(base_folder)
    assert 1 <= found["n_new_tokens"] <= 12
    assert found["adapter"] is None


def test_beam_search_equals_that_of_transformers(qpeft_cli, base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    options = {"num_beams": 3, "length_penalty": 0.8, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    text = tokenizer.decode(model.generate(**tokenizer(PROMPT, return_tensors="pt"), **options)[0])
    beams = ("--num-beams", 3, "--length-penalty", 0.8)
    found = written(qpeft_cli, "--model", base_folder, "--prompt", PROMPT, *beams)
    assert found == text + "\n"
    assert found != expected(base_folder) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{base}", "--prompt", "x", "--length-penalty", "2"], "--length-penalty is for beam search"),
        (["--model", "{base}", "--prompt", "x", "--num-beams", "2", "--temperature", "1"], "set one of them"),
        (["--model", "{base}", "--prompt", ""], "--prompt is empty"),
        (["--prompt", "x"], "--model, --adapter, or both"),
        (["--model", "{base}", "--prompt", "word " * 40], "exceed the model's context of 160"),
        (["--adapter", "{base}", "--prompt", "x"], "no adapter at"),
        (["--model", "{base}/nowhere", "--prompt", "x"], "nowhere"),
        (["--model", "{base}", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_bad_input_exits_with_code_2(qpeft_cli, base_folder, arguments, message):
    result = qpeft_cli("generate", *(a.format(base=base_folder) for a in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_story_of_a_real_model(qpeft_cli, shared):
    model = shared / "models" / "stories260K"
    text = written(qpeft_cli, "--model", model, "--prompt", "Once upon a time")
    assert text.startswith("Once upon a time, there was a little girl")
