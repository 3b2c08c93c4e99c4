"""The speed table: all groups run at tiny sizes, and a program with another result is not timed."""

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("pennylane")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the script sets variables


@pytest.mark.long
def test_benchmark_groups_have_rows(tmp_path, capsys):
    import bench

    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert list(found) == list(bench.GROUPS)
    shown = capsys.readouterr().out
    for name, group in found.items():
        assert name in shown
        assert group["cores"] > 0
        assert group["versions"]["torch"] == torch.__version__
        for row in group["rows"]:
            if row["note"].startswith("not installed"):
                assert row["ratio"] is None
            else:
                low, high = row["quartiles"]
                assert 0 < low <= row["ratio"] <= high
                assert row["rounds"] == 2


def measured(peer):
    from timing import measure

    (row,) = measure("adding", lambda: (torch.tensor([1.0, -2.0]),), {"peer": peer}, tolerance=1e-3, rounds=3)
    return row


@pytest.mark.parametrize(
    ("found", "is_refused"),
    [([1.0, -2.001], False), ([1.0, -2.01], True), ([1.0, float("nan")], True), ([1.0, -2.0, 0.0], True)],
)
def test_wrong_result_is_refused_and_not_timed(found, is_refused):
    row = measured(lambda: lambda: (torch.tensor(found),))
    assert row.refused == is_refused
    assert (row.ratio is None, row.rounds) == ((True, 0) if is_refused else (False, 3))


def test_missing_program_gets_a_row_with_the_reason():
    def peer():
        import a_missing_program  # noqa: F401

    row = measured(peer)
    assert "a_missing_program" in row.note
    assert not row.refused


def test_wrong_result_fails_the_command(monkeypatch, capsys):
    import bench

    monkeypatch.setattr(bench, "probabilities", lambda angles: 1 / angles.square().sum() + torch.zeros(16))
    assert bench.main(["--quick", "--only", "circuits"]) == 1
    assert "refused" in capsys.readouterr().out
