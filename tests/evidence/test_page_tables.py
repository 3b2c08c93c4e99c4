"""Pages and pictures have the values of the published rows, and the statistics of the rows are
right.
"""

import json
import lzma
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from snippets import ROOT

import page_tables
import pictures
import winners
from qpeft_lab.compare.report import page, summary_csv
from qpeft_lab.compare.summary import load


@pytest.mark.parametrize("path", page_tables.PAGES, ids=lambda path: path.stem)
def test_tables_have_the_values_of_the_rows(path):
    text = path.read_text(encoding="utf-8")
    assert text == page_tables.filled(text), "run make results"


TEXTS = [path.read_text(encoding="utf-8") for path in page_tables.PAGES]
ROWS = sorted((ROOT / "results").glob("*/*.jsonl.xz"))


every_setup = pytest.mark.parametrize(
    "file", ROWS, ids=lambda file: f"{file.parent.name}/{file.name.partition('.')[0]}"
)


@pytest.mark.long
@every_setup
def test_published_rows_have_a_report(file):
    assert page(load(file)).rstrip().endswith("</html>")


@every_setup
def test_statistics_of_published_rows_are_recomputed(file, tmp_path):
    winners.restore(file, tmp_path)
    (tmp_path / "summary.csv").write_text(summary_csv(load(file)), encoding="utf-8")
    command = [
        sys.executable,
        "-I",
        "-S",
        str(ROOT / "evidence" / "recompute_summary.py"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


# the words of `gallery` are those of `pooled` and `twins`; tests/verdict computes the verdicts again
ONE_RUN = {
    "catalogue",
    "ready",
    "real_adapters",
    "real_answers",
    "real_took",
    "encoder",
    "first_look",
    "served_customers",
    "served_answers",
    "served_times",
    "served_took",
}  # there is nothing to compute
RECOMPUTED = sorted(page_tables.TABLES.keys() - {"studies", "gallery", "verdicts", *ONE_RUN})


@pytest.mark.parametrize(
    "table",
    [name for name in RECOMPUTED if any(f"<!-- table: {name} -->" in text for text in TEXTS)],
)
def test_tables_are_recomputed_by_an_independent_script(table):
    command = [sys.executable, "-S", str(ROOT / "evidence" / "recompute_tables.py"), table]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = str(page_tables.TABLES[table].make()).splitlines()[2:]
    cells = [cell.strip(" *") for line in lines for cell in line.split("|")[2:-1] if cell.strip()]
    words = r"[^|]*: |.*[A-Za-z], "  # the names of adapters

    assert [
        re.sub(f"^({words})(?=[+-]?[0-9])", "", cell) for cell in cells
    ] == done.stdout.splitlines()
    assert len(cells) > 2

    picture = pictures.STATIC / f"{table}.svg"
    if picture in pictures.PICTURES:
        shown = [
            "{mean:+.1f} [{low:+.1f}, {high:+.1f}], {decision}".format(**line)
            for line in drawn(picture)["lines"]
        ]
        assert shown == [re.sub(r"^[\d.]+ rad; ", "", text) for text in done.stdout.splitlines()]


def test_results_name_no_machine():
    texts = {path: lzma.decompress(path.read_bytes()).decode() for path in ROWS}
    assert len(ROWS) > 10
    for path, text in texts.items():
        assert not any(f"/{place}/" in text for place in ("tmp", "root", "home", "work")), path


def drawn(picture):
    """The values of a picture, from its file."""
    description = ElementTree.parse(picture).find(
        ".//{http://purl.org/dc/elements/1.1/}description"
    )
    return json.loads(description.text)


@pytest.mark.parametrize("picture", pictures.PICTURES, ids=lambda picture: picture.stem)
def test_pictures_show_the_stored_measurements(picture):
    values = pictures.PICTURES[picture].measured()
    assert values
    assert drawn(picture) == values, "run make results"
    colors = re.findall("(?:fill|stroke): (#[0-9a-f]{6})", picture.read_text(encoding="utf-8"))
    assert pictures.DARK.keys() >= set(colors), "a color without one for a dark page"
