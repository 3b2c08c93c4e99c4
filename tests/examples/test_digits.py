"""The vision example, with few steps: its files, its output, and no second training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:angles move at most")]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def digits():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import digits
    finally:
        sys.path.remove(str(EXAMPLES))
    return digits


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("example")
    digits.write_digits(out)
    base = digits.train_base(out, steps=40)
    results = {method: digits.adapt(out, base, method, steps=2) for method in digits.METHODS}
    return out, base, results


def test_images_are_split_without_overlap(finished):
    out, _, _ = finished
    files = {
        name: dict(np.load(out / f"{name}.npz", allow_pickle=False)) for name in ("low", "high-train", "high-test")
    }
    assert sum(len(file["labels"]) for file in files.values()) == 1797
    assert set(files["low"]["labels"]) == {0, 1, 2, 3, 4}
    assert set(files["high-train"]["labels"]) == set(files["high-test"]["labels"]) == {5, 6, 7, 8, 9}
    assert files["low"]["images"].dtype == np.uint8
    assert files["low"]["images"].max() == 255


def test_base_learns_and_is_an_ordinary_folder(finished):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    out, base, _ = finished
    file = np.load(out / "low.npz", allow_pickle=False)
    model = AutoModelForImageClassification.from_pretrained(base).eval()
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    inputs = processor(list(file["images"][..., None]), input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.argmax(-1).numpy()
    assert (found == file["labels"]).mean() > 0.5


def test_methods_train_the_same_head(finished):
    _, _, results = finished
    assert {result.trainable_head for result in results.values()} == {64 * 5 + 5}
    assert results["head"].trainable == results["head"].trainable_head
    assert results["quantum_peft"].trainable < results["qpa"].trainable < results["lora"].trainable


def test_finished_run_is_not_trained_again(digits, finished, monkeypatch, capsys):
    out, _, results = finished
    monkeypatch.setattr(sys, "argv", ["digits.py", "--out", str(out), "--steps", "2", "--base-steps", "40"])
    digits.main()
    shown = capsys.readouterr().out
    assert f"{results['head'].after.metrics['accuracy']:.1%}" in shown
    assert "quantum_peft" in shown
    again = digits.adapt(out, out / "base" / "exported", "qpa", steps=2)
    assert again.already_finished
    assert again.after == results["qpa"].after
