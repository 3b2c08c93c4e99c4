"""The speed table: all groups run at tiny sizes, and a program with another result is not timed."""

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("pennylane")
pytest.importorskip("qiskit")

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
    for group in found.values():
        assert group["title"] in shown
        assert group["cores"] > 0
        assert group["versions"]["torch"] == torch.__version__
        assert min(group["roofline"].values()) > 0
        for row in group["rows"]:
            if row["note"].startswith("not installed"):
                assert row["ratio"] is None
            else:
                low, high = row["quartiles"]
                assert 0 < low <= row["ratio"] <= high
                assert row["rounds"] == 2


@pytest.mark.long
def test_many_adapters_are_measured(tmp_path):
    import many_adapters

    tiny = ["--geometry", "tiny", "--users", "20", "--repetitions", "2", "--cases", "attention"]
    many_adapters.main([*tiny, "--out", str(tmp_path / "many.json")])
    rows = json.loads((tmp_path / "many.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == [name for name in many_adapters.METHODS if "5 %" not in name]
    for row in rows:
        assert row["bytes"]["compact"] < row["bytes"]["compact_folder"]
        assert {"materialise", "of these: generate", "PEFT hotswap_adapter"} <= row["ms"].keys()
        assert all(times["processor_least"] > 0 for times in row["ms"].values())


def case(peer, same=True):
    from speed.measure import Case, Peer

    ours = (torch.tensor([1.0, -2.0]),)
    return Case("adding", lambda: ours, {"peer": Peer(peer, same)}, tolerance=1e-3, rounds=3)


def rows(peer, same=True):
    from speed.machine import Machine
    from speed.measure import measure

    (row,) = measure(case(peer, same), Machine(1e9, 1e9, 1e9))
    return row


@pytest.mark.parametrize("found", [[1.0, -2.01], [1.0, float("nan")], [1.0, -2.0, 0.0]])
def test_wrong_result_is_refused_and_not_timed(found):
    row = rows(lambda: lambda: (torch.tensor(found),))
    assert row.refused
    assert (row.ratio, row.theirs, row.rounds) == (None, None, 0)
    assert row.note.startswith("refused: ")


def test_equal_result_is_timed():
    row = rows(lambda: lambda: (torch.tensor([1.0, -2.001]),))
    assert not row.refused
    assert row.rounds == 3
    assert row.ratio > 0


def test_reference_of_the_cost_may_have_another_result():
    assert rows(lambda: lambda: (torch.zeros(5),), same=False).ratio > 0


def test_missing_program_gets_a_row_with_the_reason():
    def peer():
        import a_missing_program  # noqa: F401

    row = rows(peer)
    assert row.note == "not installed: No module named 'a_missing_program'"
    assert not row.refused


def test_wrong_result_fails_the_command(monkeypatch, capsys):
    import bench
    from speed import circuits

    monkeypatch.setattr(circuits, "probabilities", lambda angles: 1 / angles.square().sum() + torch.zeros(16))
    assert bench.main(["--quick", "--only", "circuits"]) == 1
    assert "refused" in capsys.readouterr().out


def test_interrupted_run_shows_and_saves_its_rows(monkeypatch, tmp_path, capsys):
    import bench
    from speed import circuits
    from speed.measure import Row

    def stopped(machine, quick):
        yield Row.of_samples("a thing", "a program", [1.0, 2.0], [3.0, 8.0])
        raise KeyboardInterrupt

    monkeypatch.setattr(circuits, "rows", stopped)
    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json")]) == 130
    assert "a thing" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["circuits"]["rows"]
    assert (row["ratio"], row["quartiles"]) == (3.5, [3.25, 3.75])
