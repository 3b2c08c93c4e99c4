"""The benchmark of memory by optimizer runs at a small size."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.long
def test_forward_passes_need_less_memory_than_backward_passes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import optimizer_memory

    out = tmp_path / "memory.json"
    optimizer_memory.main(["--geometries", "tiny", "--batch-size", "16", "--tokens", "512", "--out", str(out)])
    peaks = {row["optimizer"]: row["peak_bytes"] for row in json.loads(out.read_text())["rows"]}
    assert list(peaks) == list(optimizer_memory.OPTIMIZERS)
    assert peaks["model"] < peaks["es"] < peaks["adamw"]
