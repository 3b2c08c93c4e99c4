"""The independent recomputation agrees with the tables, and reports any change of tables or rows."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import drop_rows, edit_rows, summary_of, write_report_of

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
    write_report_of(study_folder)
    return study_folder


def test_recomputation_agrees_without_other_packages(written):
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(written)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "summary.csv agrees with the rows of 15 methods\n"


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


def change_cell(key, column, change):
    """Change a value of summary.csv."""

    def apply(folder):
        table = pd.read_csv(folder / "summary.csv", dtype=str, keep_default_na=False).set_index("key")
        table.loc[key, column] = change(table.loc[key, column])
        table.to_csv(folder / "summary.csv")

    return apply


def slightly(value):
    return repr(float(value) * (1 + 1e-7))


@pytest.mark.parametrize(
    "change",
    [
        *(
            change_cell("qpa_noise", name, slightly)
            for name in ("metric.mean", "metric.sd", "delta.low", "control.high")
        ),
        change_cell("qpa_noise", "delta.p_holm", slightly),
        change_cell("qaa", "delta.verdict", lambda _: "better"),
        lambda folder: drop_rows(folder, "qaa", "seed2"),
    ],
)
def test_changed_table_or_rows_are_reported(recompute, written, capsys, change):
    change(written)
    assert recompute.main(written) == 1
    assert capsys.readouterr().out.startswith("summary.csv: ")


def test_recomputation_agrees_with_few_rows(recompute, written):
    drop_rows(written, "qpa", "seed[1-4]")
    drop_rows(written, "qpa_noise", "seed[2-4]")
    drop_rows(written, "qaa")
    write_report_of(written)
    assert recompute.main(written) == 0


def test_recomputation_agrees_where_higher_is_better(recompute, written):
    study = written / "study.json"
    study.write_text(study.read_text().replace('"metric": "test_loss"', '"metric": "bleu"'))
    edit_rows(
        written,
        lambda row: row.update(bleu=90 - 10 * row.get("test_loss", 0)),
        name="seed*",
    )
    write_report_of(written)
    summary = summary_of(written)
    assert summary["qpa"].difference.verdict == "worse"
    assert recompute.main(written) == 0
