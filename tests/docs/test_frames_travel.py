"""The table of frames from other texts contains the stored results."""

import json


def test_table_contains_the_stored_results(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.syspath_prepend(root / "benchmarks")
    import frames_travel

    stored = json.loads((root / "benchmarks" / "results" / "frames_travel.json").read_text(encoding="utf-8"))
    assert len(stored["rows"]) == len(frames_travel.TEXTS) * (1 + len(frames_travel.SOURCES))
    assert frames_travel.table(stored["rows"]) in (root / "docs" / "honest_quantum_peft.md").read_text(encoding="utf-8")
