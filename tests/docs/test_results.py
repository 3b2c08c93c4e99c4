"""Pages and pictures have the values of the published rows, and the statistics of the rows are
right.
"""

import json
import lzma
import os
import re
import subprocess
import sys
from importlib import import_module
from xml.etree import ElementTree

import pytest
from snippets import ROOT

import findings
import protocol
from qpeft_lab.compare.report import write_outputs


@pytest.mark.parametrize("page", findings.PAGES, ids=lambda page: page.stem)
def test_tables_have_the_values_of_the_rows(page):
    text = page.read_text(encoding="utf-8")
    assert text == findings.filled(text), "run make results"


TEXTS = [page.read_text(encoding="utf-8") for page in findings.PAGES]
ROWS = sorted((ROOT / "results").glob("*/*.jsonl.xz"))


@pytest.mark.parametrize(
    "file", ROWS, ids=lambda file: f"{file.parent.name}/{file.name.partition('.')[0]}"
)
def test_statistics_of_published_rows_are_recomputed(file, tmp_path):
    protocol.restore(file, tmp_path)
    write_outputs(file, tmp_path)
    command = [
        sys.executable,
        "-I",
        "-S",
        str(ROOT / "benchmarks" / "recompute_summary.py"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


RECOMPUTED = sorted(findings.TABLES.keys() - {"studies"})


@pytest.mark.parametrize(
    "table",
    [name for name in RECOMPUTED if any(f"<!-- table: {name} -->" in text for text in TEXTS)],
)
def test_tables_are_recomputed_by_an_independent_script(table):
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "recompute_protocol.py"), table]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = findings.TABLES[table]().splitlines()[2:]
    cells = [cell.strip(" *") for line in lines for cell in line.split("|")[2:-1] if cell.strip()]
    words = r"[^|]*: |.*[A-Za-z], "  # the names of adapters
    assert [
        re.sub(f"^({words})(?=[+-]?[0-9])", "", cell) for cell in cells
    ] == done.stdout.splitlines()
    assert len(cells) > 3


def test_results_name_no_machine():
    texts = {path: lzma.decompress(path.read_bytes()).decode() for path in ROWS}
    assert len(ROWS) > 10
    for path, text in texts.items():
        assert not any(f"/{place}/" in text for place in ("tmp", "root", "home", "work")), path


def test_pictures_show_the_stored_measurements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    monkeypatch.syspath_prepend(ROOT / "docs")
    results = import_module("figures.results")
    assert results.measured()
    for picture, study in results.PICTURES.items():
        if panels := results.measured(study):
            text = (
                ElementTree.parse(picture)
                .find(".//{http://purl.org/dc/elements/1.1/}description")
                .text
            )
            assert results.described(text) == panels, "run make results"
    assert "(docs/static/main_result.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the script sets variables
    import bench

    return bench


def test_tables_contain_the_stored_results(bench):
    text = bench.PAGE.read_text(encoding="utf-8")
    groups = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert text == bench.filled(text, groups)
    assert len(
        re.findall(r"^<!-- table: .*\n\n\|.*\n\|.*\n\| \w", text, flags=re.MULTILINE)
    ) == text.count("<!-- table: ")


def test_stored_results_are_complete_runs_of_programs_that_agreed(bench):
    for group in json.loads(bench.RESULTS.read_text(encoding="utf-8")).values():
        assert not group["quick"]
        assert not any(row["refused"] for row in group["rows"])
