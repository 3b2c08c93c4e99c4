"""The tables of the benchmarks page contain the stored results."""

import json

import pytest


@pytest.fixture
def bench_page(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import bench_page

    return bench_page


def test_tables_contain_the_stored_results(bench_page):
    text = bench_page.PAGE.read_text(encoding="utf-8")
    groups = json.loads(bench_page.RESULTS.read_text(encoding="utf-8"))
    assert text == bench_page.filled(text, groups)
    assert all(f"% table: {name}\n" in text for name in groups)


def test_stored_results_are_complete_runs_of_programs_that_agreed(bench_page):
    for group in json.loads(bench_page.RESULTS.read_text(encoding="utf-8")).values():
        assert not group["quick"]
        assert not any(row["refused"] for row in group["rows"])
