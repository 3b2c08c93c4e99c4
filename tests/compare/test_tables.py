"""Tables contain the values of the rows, are deterministic, and give reasons for missing values."""

import csv
import json
import math
import re
import shutil

import pytest
from synthetic_study import edit_rows, stored_rows, summary_of, write_tables_of

FILES = ("results.jsonl", "results.csv", "summary.csv", "blocks.csv", "summary.md")


@pytest.fixture(scope="module")
def written(whole_study, tmp_path_factory):
    """A folder with its tables, which no test changes."""
    folder = shutil.copytree(whole_study, tmp_path_factory.mktemp("tables") / "study")
    write_tables_of(folder)
    return folder


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_lines(text):
    """The cells of every line of the tables."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def test_tables_depend_on_rows_only(study_folder, written):
    """Not on the folder's name, nor on the order of the rows, nor on older outputs."""
    lines = (study_folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (study_folder / "rows.jsonl").write_text("".join(reversed(lines)))
    (study_folder / "summary.csv").write_text("older")
    write_tables_of(study_folder)
    assert all((study_folder / name).read_bytes() == (written / name).read_bytes() for name in FILES)


def test_results_contain_every_row(written):
    rows = stored_rows(written)
    lines = [json.loads(line) for line in (written / "results.jsonl").read_text().splitlines()]
    assert sorted(lines, key=lambda row: row["cell_id"]) == rows
    assert [line["cell_id"] for line in read_csv(written / "results.csv")] == [line["cell_id"] for line in lines]


def test_csv_has_full_precision(written):
    rows = {row["cell_id"]: row for row in stored_rows(written)}
    checked = 0
    for line in read_csv(written / "results.csv"):
        row = rows[line["cell_id"]]
        if row["quality"].get("test_loss") is not None:
            assert float(line["quality.test_loss"]) == row["quality"]["test_loss"]
            assert int(line["cost.params_trainable"]) == row["cost"]["params_trainable"]
            checked += 1
    assert checked == 75 - 4 - 2 - 1  # the base has one row, prefix tuning lacks two, one crashed


def test_missing_values_are_empty_with_a_reason(written):
    lines = {line["key"]: line for line in read_csv(written / "summary.csv")}
    assert lines["none"]["cost.step_ms.median"] == ""
    assert "cost: nothing is trained" in lines["none"]["null_reasons"]
    assert lines["qaa"]["cost.infer_tok_s.batch_1.merged"] == ""
    assert "cost.infer_tok_s.batch_1.merged: it cannot be merged" in lines["qaa"]["null_reasons"]
    assert (lines["ia3"]["steps_to.80.median"], lines["ia3"]["steps_to.80.reached"]) == ("> 200", "0")
    assert lines["prefix"]["statuses"] == "0:success 1:success 2:success 3:missing 4:missing"
    row = next(line for line in read_csv(written / "results.csv") if line["cell_id"].endswith("seed0"))
    assert row["quality.bleu"] == ""
    assert "quality.bleu: the task has no references" in row["null_reasons"]


def test_files_contain_no_nan_or_infinity(study_folder):
    edit_rows(study_folder, lambda row: row["quality"].update({"test_loss": math.nan}), "qpa", "seed0")
    write_tables_of(study_folder)
    row = next(
        json.loads(line, parse_constant=pytest.fail)
        for line in (study_folder / "results.jsonl").read_text().splitlines()
        if "/qpa/" in line and "seed0" in line
    )
    assert row["quality"]["test_loss"] is None
    assert row["null_reasons"]["quality.test_loss"] == "not a finite number"
    assert summary_of(study_folder)["qpa"].metric.n == 4
    assert not re.search(r"\b(nan|inf)\b", (study_folder / "summary.csv").read_text())


def test_markdown_contains_sentences_limits_and_failures(written):
    text = (written / "summary.md").read_text()
    summary = summary_of(written)
    assert all(sentence in text for sentence in summary.sentences.values())
    assert all(limit in text for limit in summary.limits)
    assert "`synthetic/ia3/000000000009/seed3`: failed, a planted | crash" in text
    assert text.startswith("# A synthetic study\n\nDo tables and report contain the values of the rows?\n")
    assert text.endswith("    qpeft compare run synthetic --out study\n")


def test_markdown_tables_are_well_formed(study_folder):
    path = study_folder / "study.json"
    path.write_text(path.read_text().replace('"label": "QPA"', '"label": "QPA | odd"'))
    write_tables_of(study_folder)
    cells = table_lines((study_folder / "summary.md").read_text())
    starts = [place for place, line in enumerate(cells) if line[0] == "Method"]
    tables = [cells[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    assert all(len({len(line) for line in table}) == 1 for table in tables)
    assert len(tables[0]) == 2 + 15
    assert any(line[1] == r"QPA \| odd" for line in tables[0])
    assert ["■ bottleneck@qaa", "\u2013"] in [line[:2] for line in cells if "over the budget" in line[-1]]


def test_perplexity_of_a_hopeless_loss_is_inf_like(study_folder):
    def worsen(row):
        row["quality"] |= {"test_loss": 23.0 + row["seed"], "test_ppl": None}

    edit_rows(study_folder, worsen, "qaa", "seed*")
    write_tables_of(study_folder)
    lines = [cells for cells in table_lines((study_folder / "summary.md").read_text()) if cells[0] == "● qaa"]
    assert any("25.0000 ± 1.5811" in line for line in lines)
    assert any("inf-like" in line for line in lines)
