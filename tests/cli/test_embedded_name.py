"""`--model embedded` is the base model inside qpeft."""

import json

import pytest

import qpeft.demo


@pytest.mark.long
def test_every_command_accepts_the_embedded_base(qpeft_cli, tmp_path):
    base, run, text = str(qpeft.demo.base_path()), tmp_path / "run", tmp_path / "text.txt"
    text.write_text("Returns a new array. " * 80)

    def found(*arguments):
        result = qpeft_cli(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    named = ("--model", "embedded")
    assert found("plan", *named, "--r", 4)["base_parameters"] == 1_548_672
    sizes = ("--r", 4, "--budget", 0.5, "--steps", 1, "--seq-len", 16, "--batch-size", 2)
    assert found("train", *named, "--data", text, "--out", run, *sizes)["model"] == base
    assert found("generate", *named, "--prompt", "Returns", "--max-new-tokens", 2)["model"] == base
    assert found("evaluate", *named, "--data", text, "--seq-len", 16)["model"] == base
    assert found("export", run, *named, "--out", tmp_path / "out")["base"] == base
