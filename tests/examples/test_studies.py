"""The study files of examples/: their fields are known, and their settings belong to their methods."""

from pathlib import Path

import pytest

from qpeft.compare.study_file import load_study

FILES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_study_file_is_valid(path):
    study = load_study(str(path), {})
    assert study.reference in {method.key for method in study.methods}
    assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")
