"""`qpeft evaluate`: perplexity of the base and of an adapter, with the settings of its run; generated answers."""

import math

import pytest
from published_qpa import published_perplexity

from qpeft_lab import metrics


def test_base_and_adapter_are_scored_on_the_whole_text(answer, base_folder, adapter_folder, tmp_path):
    (text := tmp_path / "text.txt").write_text("The king went into the wood.\nThe bird säng.\n" * 9)
    evaluate = ("evaluate", "--adapter", adapter_folder, "--model", base_folder, "--data", text, "--seq-len", 32)
    found = answer(*evaluate)
    n_characters = len(text.read_text().encode())  # a token a byte, and the first of each block is not scored
    assert found["base"]["n_scored"] == found["adapted"]["n_scored"] == n_characters - math.ceil(n_characters / 32)
    assert found["base"]["bits_per_byte"] == pytest.approx(found["base"]["loss"] / math.log(2), rel=0.01)
    assert found["adapted"]["loss"] != found["base"]["loss"]
    assert answer(*evaluate, "--batch-size", 3)["base"]["loss"] == pytest.approx(found["base"]["loss"], rel=1e-6)


def test_padded_perplexity_of_a_file_with_empty_rows_is_the_published_one(answer, base_folder, tmp_path):
    rows = ["", "The king went into the wood.", "", "", "The bird sings.", "", "He said: well, well."]
    (path := tmp_path / "rows.txt").write_text("".join(f"{row}\n" for row in rows))
    found = answer("evaluate", "--model", base_folder, "--data", path, "--seq-len", 40, "--pad-rows")["base"]
    assert found["padded_perplexity"] == pytest.approx(published_perplexity(base_folder, rows, 40), rel=1e-5)


def test_adapter_of_a_run_is_scored_with_its_settings_and_its_training_data_are_noted(
    qpeft_cli, answer, base_folder, text, tmp_path
):
    (other := tmp_path / "other.txt").write_text("The bird sings at night.\n" * 9)
    run, n_characters = tmp_path / "run", 25 * 9
    answer(*("train", "--model", base_folder, "--data", text, "--out", run), "--seq-len", 16, "--steps", 1)
    for adapter in (run, run / "adapter"):
        found = answer("evaluate", "--adapter", adapter, "--data", other)
        assert found["adapted"]["n_scored"] == n_characters - math.ceil(n_characters / 16)
    found = answer("evaluate", "--adapter", run, "--data", other, "--seq-len", 32)
    assert found["adapted"]["n_scored"] == n_characters - math.ceil(n_characters / 32)
    for data, is_noted in ((text, True), (other, False)):
        shown = qpeft_cli("evaluate", "--adapter", run, "--data", data)
        assert ("training data" in " ".join(shown.stderr.split())) == is_noted


def test_generated_answers_are_scored_against_all_references(answer, base_folder, adapter_folder, tmp_path):
    rows = [("the king ", "sings at night"), ("the bird ", "sings"), ("the king ", "went into the wood")]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("mr,ref\n" + "".join(f"{prompt},{answer}\n" for prompt, answer in rows))
    columns, search = ("--prompt-column", "mr", "--completion-column", "ref"), ("--max-new-tokens", 6, "--num-beams", 2)
    adapter = ("--adapter", adapter_folder, "--model", base_folder)
    found = answer("evaluate", *adapter, "--data", pairs, *columns, "--generate", *search)
    references = [["sings at night", "went into the wood"], ["sings"]]
    assert (found["prompts"], found["references"]) == (["the king ", "the bird "], references)
    assert found["base"]["texts"] != found["adapted"]["texts"]
    for who, given in (("base", ("--model", base_folder)), ("adapted", adapter)):
        one = answer("generate", *given, "--prompt", "the king ", *search)
        assert found[who]["texts"][0] == one["text"]
        expected = metrics.score_texts(found[who]["texts"], references)
        assert {name: found[who][name] for name in expected} == expected
