"""Fixtures of the comparison's tests: a whole study with real rows."""

import shutil
from pathlib import Path

import pytest
from published_study import write_study


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that no test changes."""
    return write_study(tmp_path_factory.mktemp("published") / "study")


@pytest.fixture
def study_folder(whole_study: Path, tmp_path: Path) -> Path:
    """A study of the test's own."""
    return shutil.copytree(whole_study, tmp_path / "study")
