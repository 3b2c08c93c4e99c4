"""The tables of the benchmarks page contain the stored results."""

import json
import os
import re

import pytest


@pytest.fixture
def bench(monkeypatch, request):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the script sets variables
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import bench

    return bench


def test_tables_contain_the_stored_results(bench):
    text = bench.PAGE.read_text(encoding="utf-8")
    groups = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert text == bench.filled(text, groups)
    assert len(re.findall(r"^<!-- table: .*\n\n\|.*\n\|.*\n\| \w", text, flags=re.MULTILINE)) == 4


def test_stored_results_are_complete_runs_of_programs_that_agreed(bench):
    for group in json.loads(bench.RESULTS.read_text(encoding="utf-8")).values():
        assert not group["quick"]
        assert not any(row["refused"] for row in group["rows"])
