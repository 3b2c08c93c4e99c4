import json
import math
import shutil

import pytest
from published_qpa import published_perplexity

from qpeft import metrics


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The king went into the wood.\nThe bird säng.\n" * 9)
    return path


def test_base_and_adapter_are_scored_on_the_whole_text(qpeft_cli, base_folder, adapter_folder, text):
    shown = qpeft_cli(
        "evaluate", "--adapter", adapter_folder, "--model", base_folder, "--data", text, "--seq-len", 32, "--json"
    )
    found = json.loads(shown.stdout)
    n_characters = len(text.read_text().encode())  # a token a byte, and the first of each block is not scored
    assert found["base"]["n_tokens"] == n_characters - math.ceil(n_characters / 32)
    assert found["base"]["bits_per_byte"] == pytest.approx(found["base"]["loss"] / math.log(2), rel=0.01)
    assert found["adapted"]["n_tokens"] == found["base"]["n_tokens"]
    assert found["adapted"]["loss"] != found["base"]["loss"]


def test_adapter_of_a_run_is_scored_with_its_sequence_length(qpeft_cli, base_folder, adapter_folder, text, tmp_path):
    shutil.copytree(adapter_folder, tmp_path / "run" / "adapter")
    settings = {"model": str(base_folder), "data": "x", "out": "x", "seq_len": 16}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format": 1, "settings": settings, "identity": {}}))

    def n_tokens(adapter, *options):
        shown = qpeft_cli("evaluate", "--adapter", adapter, "--model", base_folder, "--data", text, "--json", *options)
        return json.loads(shown.stdout)["adapted"]["n_tokens"]

    n_characters = len(text.read_text().encode())
    assert n_tokens(tmp_path / "run") == n_tokens(tmp_path / "run" / "adapter") == n_characters - -(-n_characters // 16)
    assert n_tokens(tmp_path / "run", "--seq-len", 32) == n_characters - -(-n_characters // 32)


def test_score_does_not_depend_on_the_batch_size(qpeft_cli, base_folder, text):
    losses = [
        json.loads(
            qpeft_cli("evaluate", "--model", base_folder, "--data", text, "--batch-size", size, "--json").stdout
        )["base"]["loss"]
        for size in (1, 3, 100)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_scores_are_printed_as_a_table(qpeft_cli, base_folder, text):
    shown = qpeft_cli("evaluate", "--model", base_folder, "--data", text)
    assert "perplexity" in shown.stdout
    assert "bits per byte" in shown.stdout
    assert "padded" not in shown.stdout


def test_padded_perplexity_is_printed_only_with_its_option(qpeft_cli, base_folder, text):
    shown = qpeft_cli("evaluate", "--model", base_folder, "--data", text, "--padded-perplexity")
    assert "padded perplexity" in shown.stdout
    assert "scores the padding too" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_padded_perplexity_of_a_file_with_empty_rows_is_the_published_one(qpeft_cli, base_folder, tmp_path, suffix):
    rows = ["", "The king went into the wood.", "", "", "The bird sings.", "", "He said: well, well."]
    path = tmp_path / f"rows.{suffix}"
    content = {
        "jsonl": "".join(json.dumps({"text": row}) + "\n" for row in rows),
        "csv": "text\n" + "".join(f'"{row}"\n' for row in rows),
        "txt": "".join(f"{row}\n" for row in rows),
    }
    path.write_text(content[suffix])
    options = ("--model", base_folder, "--data", path, "--seq-len", 40)
    found = json.loads(qpeft_cli("evaluate", *options, "--padded-perplexity", "--json").stdout)["base"]
    assert found["padded_perplexity"] == pytest.approx(published_perplexity(base_folder, rows, 40), rel=1e-5)
    usual = json.loads(qpeft_cli("evaluate", *options, "--json").stdout)["base"]
    assert (found["perplexity"], found["n_padding"]) == (usual["perplexity"], 0)


def test_separator_joins_texts_without_an_end_of_text(qpeft_cli, base_folder, tmp_path):
    texts = ["The king went", "", " into the wood.\n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "text.txt").write_text("".join(texts))

    def score(name, *options):
        given = ("--model", base_folder, "--data", tmp_path / name, "--seq-len", 160, "--json")
        return json.loads(qpeft_cli("evaluate", *given, *options).stdout)["base"]

    assert score("rows.jsonl", "--separator", "") == score("text.txt")
    assert score("rows.jsonl")["n_tokens"] == score("text.txt")["n_tokens"] + 1  # an end of text between two texts


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a text to score", (), "no model; pass --model, --adapter, or both"),
        ("x", ("--seq-len", 9, "--model"), "has no token to score within --seq-len=9"),
        ("a text to score", ("--seq-len", 9999, "--model"), "--seq-len=9999 is longer than the model's context of"),
        ('{"prompt": "a", "completion": "b"}', ("--padded-perplexity", "--model"), "this data has prompts or messages"),
    ],
)
def test_bad_input_exits_with_code_2(qpeft_cli, base_folder, tmp_path, content, options, message):
    path = tmp_path / ("a.jsonl" if content.startswith("{") else "a.txt")
    path.write_text(content)
    model = (base_folder,) if "--model" in options else ()
    refused = qpeft_cli("evaluate", "--data", path, *options, *model)
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())


def test_training_data_of_the_run_are_reported(qpeft_cli, base_folder, tmp_path):
    (text := tmp_path / "text.txt").write_text("The king went into the wood.\n" * 40)
    (copy := tmp_path / "copy.txt").write_bytes(text.read_bytes())
    (other := tmp_path / "other.txt").write_text("The bird sings at night.\n" * 9)
    run = tmp_path / "run"
    options = ("--seq-len", 16, "--steps", 1, "--method", "lora")
    trained = qpeft_cli("train", "--model", base_folder, "--data", text, "--out", run, *options)
    assert trained.exit_code == 0, trained.output
    for data, is_reported in ((text, True), (copy, True), (other, False)):
        shown = qpeft_cli("evaluate", "--adapter", run, "--data", data, "--seq-len", 16)
        assert shown.exit_code == 0, shown.output
        assert (f"{data} are the training data of" in " ".join(shown.stderr.split())) == is_reported


@pytest.fixture
def pairs(tmp_path):
    rows = [("the king ", "sings at night"), ("the bird ", "sings"), ("the king ", "went into the wood")]
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\n" + "".join(f"{prompt},{answer}\n" for prompt, answer in rows))
    return path


def test_generated_answers_are_scored_against_all_references(qpeft_cli, base_folder, adapter_folder, pairs):
    options = ("--data", pairs, "--generate", "--max-new-tokens", 6, "--num-beams", 2)
    shown = qpeft_cli("evaluate", "--adapter", adapter_folder, "--model", base_folder, *options, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    references = [["sings at night", "went into the wood"], ["sings"]]
    assert (found["prompts"], found["references"]) == (["the king ", "the bird "], references)
    assert found["decoding"] == {
        "max_new_tokens": 6, "num_beams": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 0
    }  # fmt: skip
    assert found["base"]["texts"] != found["adapted"]["texts"]
    for who, adapter in (("base", ()), ("adapted", ("--adapter", adapter_folder))):
        one = qpeft_cli("generate", "--model", base_folder, *adapter, "--prompt", "the king ", "--json", *options[3:])
        assert found[who]["texts"][0] == json.loads(one.stdout)["text"]
        expected = metrics.score_texts(found[who]["texts"], references)
        assert {name: found[who][name] for name in expected} == expected


def test_answers_are_read_from_the_columns_of_the_run(qpeft_cli, base_folder, pairs, tmp_path):
    pairs.write_text(pairs.read_text().replace("prompt,completion", "mr,ref"))
    columns = ("--prompt-column", "mr", "--completion-column", "ref")
    options = ("--model", base_folder, "--data", pairs, "--eval-data", pairs, "--method", "lora", "--steps", 1)
    trained = qpeft_cli("train", *options, *columns, "--seq-len", 32, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    shown = qpeft_cli(
        "evaluate", "--adapter", tmp_path / "run", "--data", pairs, "--generate", "--max-new-tokens", 4, "--json"
    )
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["prompts"] == ["the king ", "the bird "]


def test_scores_of_answers_are_printed_as_a_table(qpeft_cli, base_folder, pairs):
    shown = qpeft_cli("evaluate", "--model", base_folder, "--data", pairs, "--generate", "--max-new-tokens", 4)
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith((" BLEU", " NIST", " CIDEr", " METEOR"))] == [
        "BLEU", "BLEU,", "NIST", "CIDEr"
    ]  # fmt: skip
    assert "2 prompts, 3 references, the most likely token each time" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-beams", 4), "--num-beams is for generated answers; add --generate"),
        (("--meteor",), "--meteor is for generated answers; add --generate"),
        (("--generate", "--length-penalty", 2), "--length-penalty is for beam search"),
        (("--generate", "--padded-perplexity"), "cannot be combined"),
        (("--generate", "--task", "text-classification"), "--generate is for task causal-lm"),
        (("--generate", "--bertscore-model", "nowhere"), "bertscore_model=nowhere is no folder of an encoder"),
        (("--generate", "--max-new-tokens", 500), "reduce --max-new-tokens"),
        (("--generate", "--prompt-column", "question", "--text-column", "prompt"), "has no prompts with answers"),
    ],
)
def test_options_of_answers_that_contradict_each_other_exit_with_code_2(
    qpeft_cli, base_folder, pairs, options, message
):
    refused = qpeft_cli("evaluate", "--model", base_folder, "--data", pairs, *options)
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())
