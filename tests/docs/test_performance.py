"""The page on performance has the values of the stored measurements."""

import os
import re

import pytest

from qpeft.files import read_json


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the script sets variables
    import bench

    return bench


def test_tables_contain_the_stored_results(bench):
    text = bench.PAGE.read_text(encoding="utf-8")
    groups = read_json(bench.RESULTS)
    assert text == bench.filled(text, groups)
    assert len(
        re.findall(r"^<!-- table: .*\n\n\|.*\n\|.*\n\| \w", text, flags=re.MULTILINE)
    ) == text.count("<!-- table: ")


def test_stored_results_are_complete_runs_of_programs_that_agreed(bench):
    for group in read_json(bench.RESULTS).values():
        assert not group["quick"]
        assert not any(row["refused"] for row in group["rows"])
