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

    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert list(content) == list(bench.GROUPS)

    for row in (
        row for group in content.values() for row in group["rows"] if row["ratio"] is not None
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


def test_operations_are_counted_without_views_by_dispatch_and_by_leaf():
    from operations import dispatched_operations, leaf_operations

    x = torch.arange(12.0, requires_grad=True)

    def run():
        x.view(3, 4).mT[1].reshape(3).sin().sum().backward()

    run()  # makes x.grad
    dispatched = dispatched_operations(run)
    leaf = leaf_operations(run)
    views = {"view", "mT", "transpose", "select", "reshape", "as_strided", "expand", "t", "detach"}

    assert not views & {*dispatched, *leaf}
    assert dispatched["sin"] == leaf["sin"] == 1
    # the backward pass of a selection is one operation, and zeros and a copy below the dispatcher
    assert dispatched["select_backward"] == 1
    assert leaf["select_backward"] == 0
    assert min(leaf["zero_"], leaf["copy_"]) >= 1
