import json
from dataclasses import replace
from pathlib import Path

import pytest

from qpeft.demo import build_base, corpus
from qpeft.demo.build_base import build
from qpeft.demo.pretrain import Recipe
from qpeft.demo.training_log import TrainingLog
from qpeft.errors import CheckpointError, InputError

TINY = Recipe(width=16, layers=1, heads=2, context=32, vocabulary=320, passes=4, batch=4, save_every=10)
DOCS = [f"Return the {i}-th {word} of a sequence.\n\nRaise {i}." for i in range(60) for word in ("item", "line")]
OTHER = [f"Array number {i}" for i in range(60)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    build(out, TINY, DOCS, OTHER)
    return out


def weights_and_tokenizer(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("model.safetensors", "tokenizer.json", "config.json")]


def build_until(step: int, out: Path) -> list[int]:
    """Begin or go on building, interrupted at `step`; return the steps that were done."""
    seen, note = [], TrainingLog.__call__

    def interrupting(self, progress, model):
        note(self, progress, model)
        seen.append(progress.step)
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(TrainingLog, "__call__", interrupting)
        build(out, TINY, DOCS, OTHER)
    return seen


def test_it_is_repeatable_to_the_last_bit(built, tmp_path):
    build(tmp_path / "again", TINY, DOCS, OTHER)
    assert weights_and_tokenizer(tmp_path / "again") == weights_and_tokenizer(built)


def test_an_interrupted_training_goes_on_to_the_same_weights(built, tmp_path):
    out = tmp_path / "base"
    build_until(27, out)
    assert not out.exists()
    assert build_until(33, out)[0] == 21  # one after the last checkpoint
    build(out, TINY, DOCS, OTHER)
    assert weights_and_tokenizer(out) == weights_and_tokenizer(built)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert [row["pass"] for row in json.loads((out / "training.json").read_text())["passes"]] == [1, 2, 3, 4]


def test_another_seed_gives_other_weights(built, tmp_path):
    build(tmp_path / "base", replace(TINY, seed=1), DOCS, OTHER)
    weights, tokenizer, _ = weights_and_tokenizer(tmp_path / "base")
    assert tokenizer == weights_and_tokenizer(built)[1]
    assert weights != weights_and_tokenizer(built)[0]


def test_training_lowers_the_loss_and_the_card_says_by_how_much(built):
    training = json.loads((built / "training.json").read_text())
    first, *_, last = training["passes"]
    assert last["validation_loss"] < first["validation_loss"] < 5.77  # ln 320
    assert training["scores"]["stdlib_validation"]["loss"] == pytest.approx(last["validation_loss"], rel=1e-3)
    assert training["scores"]["stdlib_test"]["sha256"] == corpus.digest(corpus.split(DOCS).test)
    assert f"{training['scores']['numpy_test']['loss']:.3f}" in (built / "README.md").read_text()


def test_what_is_saved_has_no_dropout_and_half_precision(built):
    config = json.loads((built / "config.json").read_text())
    assert [config[key] for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop")] == [0.0, 0.0, 0.0]
    assert config["dtype"] == "float16"


def test_an_existing_folder_is_refused_before_any_work(built):
    before = weights_and_tokenizer(built)
    with pytest.raises(InputError, match="exists already"):
        build(built, TINY, DOCS, OTHER)
    assert weights_and_tokenizer(built) == before


def test_work_in_progress_of_another_recipe_is_refused(tmp_path):
    build_until(11, tmp_path / "base")
    with pytest.raises(CheckpointError, match="Delete the file to begin anew"):
        build(tmp_path / "base", replace(TINY, lr=1e-4), DOCS, OTHER)


def test_the_command_needs_a_folder(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build_base"])
    with pytest.raises(SystemExit) as stop:
        build_base.main()
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
