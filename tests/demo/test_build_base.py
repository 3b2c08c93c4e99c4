"""The script that built the embedded base, with a tiny recipe."""

import json
import math
import runpy
from pathlib import Path

import pytest

from qpeft.training.base_model import load_model, load_tokenizer

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_embedded_base.py"))
TINY = {"width": 16, "layers": 1, "heads": 2, "context": 32, "vocabulary": 320, "passes": 4, "batch": 4}
DOCS = [f"Return the {i}-th {word} of a sequence.\n\nRaise {i}." for i in range(60) for word in ("item", "line")]
OTHER = [f"Array number {i}" for i in range(60)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    SCRIPT["build"](out, SCRIPT["Recipe"](**TINY), DOCS, OTHER)
    return out


def test_built_model_has_learned_and_is_loaded_without_dropout(built):
    model, tokenizer = load_model(str(built)), load_tokenizer(str(built))
    config = json.loads((built / "config.json").read_text())
    assert [config[key] for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dtype")] == [0.0, 0.0, 0.0, "float16"]
    assert tokenizer.decode(tokenizer(DOCS[3])["input_ids"]) == DOCS[3]
    scores = json.loads((built / "training.json").read_text())["scores"]
    assert scores["stdlib_test"]["loss"] < math.log(320) - 0.1
    assert model.num_parameters() == json.loads((built / "training.json").read_text())["n_parameters"]


def test_interrupted_build_resumes(built, tmp_path, monkeypatch):
    """From the checkpoint of the second of four passes, to the same weights."""
    checkpoints = sorted(built.with_name("base.partial").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    assert len(checkpoints) == 2
    checkpoints[-1].rename(tmp_path / "last")  # as if killed in the last pass
    again = tmp_path / "again"
    checkpoints[0].parent.rename(again.with_name("again.partial"))
    SCRIPT["build"](again, SCRIPT["Recipe"](**TINY), DOCS, OTHER)
    assert (again / "model.safetensors").read_bytes() == (built / "model.safetensors").read_bytes()


def test_existing_folder_is_refused(built):
    with pytest.raises(SystemExit, match="exists"):
        SCRIPT["build"](built, SCRIPT["Recipe"](**TINY), DOCS, OTHER)
