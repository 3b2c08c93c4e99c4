"""Methods without a stock form, QAA and bottleneck: train, evaluate, generate; export is refused."""

import pytest

OPTIONS = {"qaa": ("--ansatz", "rxyz", "--n-layers", 2), "bottleneck": ("--bottleneck-size", 4)}


@pytest.mark.parametrize("method", OPTIONS)
def test_run_is_scored_and_generates_and_is_not_exported(qpeft_cli, answer, base_folder, text, tmp_path, method):
    paths = ("--model", base_folder, "--data", text, "--out", tmp_path / "run")
    answer("train", *paths, "--method", method, *OPTIONS[method], "--steps", 2)
    adapter = ("--adapter", tmp_path / "run" / "adapter", "--model", base_folder)
    found = answer("evaluate", *adapter, "--data", text)
    assert found["adapted"]["loss"] != found["base"]["loss"]
    answer("generate", *adapter, "--prompt", "The king", "--max-new-tokens", 4)
    for merge in ((), ("--merge",)):
        assert qpeft_cli("export", tmp_path / "run", *merge, "--out", tmp_path / "exported").exit_code == 2
        assert not (tmp_path / "exported").exists()
