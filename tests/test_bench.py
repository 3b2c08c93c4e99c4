"""The speed table: all groups run at tiny sizes, and a program with another result is not timed."""

import json
import os

import pytest
import torch

pytest.importorskip("pennylane")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the script sets variables


@pytest.mark.long
def test_benchmark_groups_have_rows(tmp_path):
    import bench

    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert list(found) == list(bench.GROUPS)
    for row in (
        row for group in found.values() for row in group["rows"] if row["ratio"] is not None
    ):
        low, high = row["quartiles"]
        assert 0 < low <= row["ratio"] <= high


def test_wrong_result_fails_the_command(monkeypatch, capsys):
    import bench

    monkeypatch.setattr(
        bench, "probabilities", lambda angles: 1 / angles.square().sum() + torch.zeros(16)
    )
    assert bench.main(["--quick", "--only", "circuits"]) == 1
    assert "refused" in capsys.readouterr().out
