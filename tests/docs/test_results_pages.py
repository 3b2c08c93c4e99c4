"""The result pages have the values of their summaries, and the summaries those of their rows."""

import subprocess
import sys
from pathlib import Path

import pytest

import results_pages

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize("study", results_pages.STUDIES)
def test_pages_have_the_values_of_their_summaries(study):
    assert (RESULTS / f"{study}.md").read_text(encoding="utf-8") == results_pages.page(study)


def test_picture_has_the_values_of_the_rows():
    drawn = (RESULTS / results_pages.FRONTS).read_text(encoding="utf-8")
    assert drawn == results_pages.fronts()


def test_index_lists_all_studies():
    text = (RESULTS / "index.md").read_text(encoding="utf-8")
    assert text == results_pages.index(text)


def test_readme_has_the_best_adapters_of_its_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == results_pages.readme(text)


@pytest.mark.parametrize(
    "study", sorted(path.parent.relative_to(RESULTS).as_posix() for path in RESULTS.glob("*/*/study.json"))
)
def test_summaries_have_the_values_of_their_rows(study):
    command = [sys.executable, str(ROOT / "benchmarks" / "recompute_summary.py"), str(RESULTS / study)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_name_no_machine():
    for path in RESULTS.rglob("*"):
        if path.suffix in (".md", ".json", ".csv", ".html"):
            text = path.read_text(encoding="utf-8")
            assert not any(f"/{place}/" in text for place in ("tmp", "root", "home", "work")), path
