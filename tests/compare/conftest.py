"""Fixtures of the comparison's tests: tiny models, and a whole study with invented rows."""

import shutil
from pathlib import Path

import pytest
from synthetic_study import write_synthetic_study


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic study that no test changes."""
    return write_synthetic_study(tmp_path_factory.mktemp("synthetic") / "study")


@pytest.fixture
def study_folder(whole_study: Path, tmp_path: Path) -> Path:
    """A synthetic study of the test's own."""
    return shutil.copytree(whole_study, tmp_path / "study")
