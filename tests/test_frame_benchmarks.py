"""The benchmarks of frames run at small sizes, and resume."""

import json

import pytest

pytestmark = pytest.mark.long


def test_frames_of_each_source_are_compared(shared, tmp_path, monkeypatch, capsys):
    import frames_travel

    for name, value in {"SEEDS": (0, 1), "RATES": (2e-3,), "EVAL_BLOCKS": 4}.items():
        monkeypatch.setattr(frames_travel, name, value)
    data = shared / "data"
    files = {
        "grimm": data / "grimm" / "GrimmsFairyTales.txt",
        "shakespeare": data / "tinyshakespeare" / "input.txt",
        "stories": data / "tinystories_1000" / "tinystories_1000.json",
        "wikitext103": data / "wikitext" / "wikitext103_raw_train_first1000.json",
    }
    given = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    run = ["--model", str(shared / "models" / "stories260K"), "--out", str(tmp_path), "--texts", "grimm", *given]
    frames_travel.main(["run", *run, "--steps", "1"])
    runs = tmp_path / "runs.jsonl"
    expected = runs.read_text()
    lines = expected.splitlines(keepends=True)
    runs.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while the last run was written
    frames_travel.main(["run", *run, "--steps", "1"])
    assert runs.read_text() == expected
    frames_travel.main(["report", "--out", str(tmp_path), "--texts", "grimm"])
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["frames"] for row in rows] == [frames_travel.BASE, *frames_travel.SOURCES]
    assert len({tuple(row["test"]) for row in rows}) == len(rows)
    assert {len(row["test"]) for row in rows[1:]} == {len(frames_travel.SEEDS)}
    assert {row["trainable"] for row in rows[1:]} == {357}
    with pytest.raises(SystemExit, match="give the file of the text wikitext as --wikitext"):
        frames_travel.main(["run", "--model", run[1], "--out", str(tmp_path), "--texts", "wikitext", "--steps", "1"])


def test_texts_of_other_domains_are_not_the_near_ones():
    import frames_travel

    for text in frames_travel.TEXTS:
        assert len({text, frames_travel.NEAR_TEXT[text], frames_travel.FAR_TEXT[text]}) == 3
        assert frames_travel.FAR_TEXT[text] in frames_travel.READERS


def test_learning_rate_is_that_of_a_seed_that_is_not_reported():
    import frames_travel

    low, high = min(frames_travel.RATES), max(frames_travel.RATES)
    assert frames_travel.TUNING_SEED not in frames_travel.SEEDS
    runs = {}
    for lr in frames_travel.RATES:
        cell = frames_travel.Cell("grimm", "random", lr, frames_travel.TUNING_SEED)
        runs[cell] = {"validation": 3.0 if lr == high else 4.0}
        runs[cell._replace(seed=0)] = {"validation": 3.0 if lr == low else 4.0}
    assert frames_travel.best_rate("grimm", "random", runs) == high


def test_near_text_of_numpy_is_the_documentation_of_scipy():
    import frames_travel

    documents = frames_travel.scipy_docs()
    assert len(documents) >= frames_travel.SCIPY_DOCUMENTS
    assert sum("Parameters" in document for document in documents) > 50


def test_adapters_with_a_frame_file_are_measured(tmp_path, monkeypatch):
    import frame_files

    monkeypatch.setitem(frame_files.GEOMETRIES, "gpt2", frame_files.GEOMETRIES["tiny"])
    documents = frame_files.numpy_docs()[:300]
    monkeypatch.setattr(frame_files, "numpy_docs", lambda: documents)
    out = tmp_path / "frame_files.json"
    small = ["--users", "12", "--repetitions", "2", "--seeds", "0", "--steps", "1"]
    frame_files.main([*small, "--out", str(out)])
    found = json.loads(out.read_text())
    for row in found["load"]:
        assert row["tensor_bytes"] < row["bytes_of_an_adapter"] < row["bytes_of_the_frame_file"]
        assert 12 * row["tensor_bytes"] <= row["bytes_of_all"] < 12 * 1000
        assert all(0 < row["ms"][kind]["median"] <= row["ms"][kind]["99th"] for kind in frame_files.LOADS)
    losses = found["loss"]["0"]
    assert list(losses) == ["base", *frame_files.STORAGE]
    assert losses["float16"] == pytest.approx(losses["float32"], abs=1e-3)
