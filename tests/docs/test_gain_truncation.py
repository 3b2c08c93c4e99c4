"""The table of norm gains as a LoRA contains the stored results."""

import json


def test_table_contains_the_stored_results(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.syspath_prepend(root / "benchmarks")
    import gain_truncation

    rows = json.loads((root / "benchmarks" / "results" / "gain_truncation.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * (2 + 2 * len(gain_truncation.RANKS))
    assert gain_truncation.table(rows) in (root / "docs" / "serving.md").read_text(encoding="utf-8")
