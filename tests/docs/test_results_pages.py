"""The pages have the values of the published rows, and the statistics of the rows are right."""

import lzma
import subprocess
import sys
from pathlib import Path

import pytest

import findings
from qpeft_lab.compare.report import write_all
from qpeft_lab.compare.summary import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", findings.PAGES, ids=lambda page: page.stem)
def test_tables_have_the_values_of_the_rows(page):
    text = page.read_text(encoding="utf-8")
    assert text == findings.filled(text), "run make results"


ROWS = sorted((ROOT / "results").glob("*/*.jsonl.xz"))


@pytest.mark.parametrize("file", ROWS, ids=lambda file: f"{file.parent.name}/{file.name.partition('.')[0]}")
def test_statistics_of_published_rows_are_recomputed(file, tmp_path):
    study, *rows = lzma.decompress(file.read_bytes()).decode().splitlines()
    (tmp_path / "study.json").write_text(study)
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    write_all(tmp_path, load(file))
    command = [sys.executable, str(ROOT / "benchmarks" / "recompute_summary.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_name_no_machine():
    texts = {path: lzma.decompress(path.read_bytes()).decode() for path in ROWS}
    assert len(ROWS) > 10
    for path, text in texts.items():
        assert not any(f"/{place}/" in text for place in ("tmp", "root", "home", "work")), path
