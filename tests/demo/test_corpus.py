import hashlib
import os
import subprocess
import sys
import sysconfig

import pytest

from qpeft.errors import DataError
from qpeft_lab.demo import corpus

pytestmark = pytest.mark.xdist_group("corpus")  # the texts are collected once

FRESH = """
import hashlib, sys
from qpeft_lab.demo import corpus
print(hashlib.sha256(repr([corpus.stdlib_docs(), corpus.numpy_docs()]).encode()).hexdigest())
print(*sorted({"torch", "numpy", "transformers", "peft", "turtle", "this"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def stdlib() -> list[str]:
    return corpus.stdlib_docs()


@pytest.fixture(scope="module")
def numpy() -> list[str]:
    return corpus.numpy_docs()


@pytest.mark.long
def test_corpus_is_equal_in_another_process(stdlib, numpy):
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=True)
    digest = hashlib.sha256(repr([stdlib, numpy]).encode()).hexdigest()
    assert result.stdout.split("\n")[:2] == [digest, ""]


@pytest.mark.parametrize("name", ["stdlib", "numpy"])
def test_documents_are_distinct_and_normalised(name, request):
    docs = request.getfixturevalue(name)
    assert len(set(docs)) == len(docs) > 1000
    assert all(text == text.strip() != "" for text in docs)
    assert not any(line != line.rstrip() for text in docs for line in text.split("\n"))
    assert sum(map(len, docs)) > 1_000_000


def test_reading_executes_nothing_and_skips_tests(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text('"""A test."""')
    (tmp_path / "module.py").write_text('"""Kept.   \n    And this."""\nraise SystemExit("executed")\n')
    (tmp_path / "repeats.py").write_text('def f():\n    """Kept.\n    And this.\n    """\n    return "\\d"\n')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert corpus.stdlib_docs() == ["Kept.\nAnd this."]


def test_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"sources are missing") as error:
        corpus.stdlib_docs()
    assert str(tmp_path) in str(error.value)
