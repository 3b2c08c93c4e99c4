import sysconfig

import pytest

from qpeft.errors import DataError
from qpeft_lab.demo import corpus


def test_reading_executes_nothing_and_skips_tests(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text('"""A test."""')
    (tmp_path / "module.py").write_text(
        '"""Kept.   \n    And this."""\nraise SystemExit("executed")\n'
    )
    (tmp_path / "repeats.py").write_text(
        'def f():\n    """Kept.\n    And this.\n    """\n    return "\\d"\n'
    )
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    assert corpus.stdlib_docs() == ["Kept.\nAnd this."]


def test_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"sources are missing") as error:
        corpus.stdlib_docs()
    assert str(tmp_path) in str(error.value)
