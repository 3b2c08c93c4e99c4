"""The examples that serve users and classify images, with few steps, and the study files."""

import sys
from pathlib import Path

import pytest

from qpeft.errors import ConfigError
from qpeft_lab.compare.study import load_study
from studies import count_methods

STUDIES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
DOCS = [f"A {word} of two values." for word in ("polynomial", "random seed", "mask", "string")] * 30
pytestmark = pytest.mark.filterwarnings("ignore:.*attention mask")


def test_adapters_of_users_have_a_few_kilobytes_and_are_trained_once(
    example, tmp_path, monkeypatch
):
    serve_users = example("serve_users")
    monkeypatch.setattr(serve_users, "numpy_docs", lambda: DOCS)
    monkeypatch.setattr(serve_users, "BATCH", 1)
    monkeypatch.setattr(
        sys, "argv", ["serve_users.py", "--out", str(tmp_path), "--steps", "1", "--new-tokens", "3"]
    )
    serve_users.main()

    assert {folder.name for folder in tmp_path.iterdir()} == serve_users.USERS.keys()

    for folder in tmp_path.iterdir():
        assert (folder / "adapter_model.safetensors").stat().st_size < 4_000
        assert serve_users.size(folder) < 12_000
    monkeypatch.setattr(serve_users, "train", None)
    serve_users.main()


@pytest.mark.long
def test_digits_adapts_with_every_method_and_trains_nothing_again(
    example, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("sklearn")
    digits = example("digits")
    digits.write_digits(tmp_path)
    base = digits.train_base(tmp_path, steps=40)
    results = {method: digits.adapt(tmp_path, base, method, steps=2) for method in digits.METHODS}

    assert {result.trainable_head for result in results.values()} == {64 * 5 + 5}
    assert results["head"].trainable == results["head"].trainable_head
    assert results["quantum_peft"].trainable < results["qpa"].trainable < results["lora"].trainable

    monkeypatch.setattr(
        sys, "argv", ["digits.py", "--out", str(tmp_path), "--steps", "2", "--base-steps", "40"]
    )
    digits.main()
    assert f"{results['head'].after.metrics['accuracy']:.1%}" in capsys.readouterr().out

    again = digits.adapt(tmp_path, tmp_path / "base" / "exported", "qpa", steps=2)
    assert again.already_finished
    assert again.after == results["qpa"].after


# -- the study files


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_file_is_valid(path, tmp_path):
    study = load_study(str(path), {})
    assert study.reference in {method.key for method in study.methods}
    assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")
    assert count_methods(study, tmp_path).keys() == {method.key for method in study.methods}


def test_broken_settings_of_a_study_file_are_found(tmp_path):
    broken = {"key": "circuit", "method": "quantum_peft", "settings": {"shear": "type"}}
    study = load_study(str(STUDIES[0]), {"methods": [broken], "reference": "circuit"})
    with pytest.raises(ConfigError, match=r"method circuit: .*'shear'; did you mean 'share'"):
        count_methods(study, tmp_path)
