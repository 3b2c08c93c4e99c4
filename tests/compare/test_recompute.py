"""The independent recomputation agrees with the tables, and reports any change of tables or rows."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_study import drop_rows, edit_rows, write_tables_of

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "recompute_summary.py"


@pytest.fixture(scope="module")
def recompute():
    spec = importlib.util.spec_from_file_location("recompute_summary", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def written(study_folder):
    write_tables_of(study_folder)
    return study_folder


def test_recomputation_agrees_without_other_packages(written):
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(written)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "summary.csv and blocks.csv agree with the rows of 15 methods\n"


def test_script_imports_only_the_standard_library():
    tree = ast.parse(SCRIPT.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30])
def test_students_distribution_equals_scipy(recompute, df):
    from scipy.stats import t

    assert recompute.quantile(df) == pytest.approx(t.ppf(0.975, df), rel=1e-12)
    for value in (0.0, 0.3, 2.0, 9.0, 300.0):
        assert recompute.tail(value, df) == pytest.approx(2 * t.sf(value, df), rel=1e-10)


@pytest.mark.parametrize(
    "column", ["metric.mean", "metric.sd", "delta.mean", "delta.low", "delta.p_holm", "control.high"]
)
def test_changed_value_is_reported(recompute, written, capsys, column):
    path = written / "summary.csv"
    header, *lines = path.read_text().splitlines()
    place = header.split(",").index(column)
    key = "qpa_noise"
    changed = [",".join(_nudge(line.split(","), place)) if line.startswith(key) else line for line in lines]
    path.write_text("\n".join([header, *changed]) + "\n")
    assert recompute.main(written) == 1
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith(f"summary.csv: {key} {column} is ")


def _nudge(cells, place):
    cells[place] = repr(float(cells[place]) * (1 + 1e-7))
    return cells


@pytest.mark.parametrize("verdict", ["better", "no difference shown"])
def test_changed_verdict_is_reported(recompute, written, capsys, verdict):
    path = written / "summary.csv"
    path.write_text(re.sub(r"(?m)^(qaa,.*?),worse,worse,", rf"\1,worse,{verdict},", path.read_text()))
    assert recompute.main(written) == 1
    assert "qaa delta.verdict is" in capsys.readouterr().out


def test_missing_seed_is_reported(recompute, written, capsys):
    drop_rows(written, "qaa", "seed2")
    assert recompute.main(written) == 1
    out = capsys.readouterr().out
    assert "summary.csv: qaa seeds_ok is '5', the rows give 4" in out
    assert "blocks.csv: qaa lora@qaa delta.n is '5', the rows give 4" in out


def test_missing_line_is_reported(recompute, written, capsys):
    path = written / "blocks.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert recompute.main(written) == 1
    assert "blocks.csv: lines" in capsys.readouterr().out


def test_recomputation_agrees_with_few_rows(recompute, written):
    drop_rows(written, "qpa", "seed[1-4]")
    drop_rows(written, "qpa_noise", "seed[2-4]")
    drop_rows(written, "qaa")
    write_tables_of(written)
    assert recompute.main(written) == 0


def test_recomputation_agrees_where_higher_is_better(recompute, written):
    study = written / "study.json"
    study.write_text(study.read_text().replace('"metric": "test_loss"', '"metric": "bleu"'))
    edit_rows(
        written,
        lambda row: row["quality"].update({"bleu": 90 - 10 * row["quality"].get("test_loss", 0)}),
        name="seed*",
    )
    summary = write_tables_of(written)
    assert summary["qpa"].difference.verdict == "worse"
    assert summary["full"].rank == 1
    assert recompute.main(written) == 0
