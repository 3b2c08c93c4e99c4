"""Quantum-PEFT on trained weights: the embedded GPT-2 (Conv1D) and, where it is at hand, a Llama (Linear)."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.demo import base_path

pytestmark = pytest.mark.long


@pytest.fixture(params=["conv1d", "linear"])
def load(request):
    """A function that loads the base anew, and token ids (4, 64) that it has never seen."""
    folder = base_path()
    if request.param == "linear":
        folder = request.getfixturevalue("shared") / "models" / "stories260K"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(base.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(1))
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), ids


SETTINGS = [
    {"r": 8, "n_layers": 2},
    {"r": 8, "n_layers": 1, "construction": "qsd_full", "columns": "first"},
    {"r": 5, "n_layers": 1, "frame": "gradient", "share": "type"},
    {"r": 4, "family": "lie"},
]


@pytest.mark.filterwarnings("ignore:the recursion needs:UserWarning")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ", ".join(f"{k}={v}" for k, v in s.items()))
def test_export_live_and_merged_logits_agree(load, adapters, tmp_path, monkeypatch, settings):
    fresh, ids = load
    model = get_peft_model(fresh(), qpeft.QuantumPeftConfig(target_modules="all-linear", **settings))
    if settings.get("frame"):
        qpeft.fit_frames(model, [{"input_ids": ids}])
    adapters.train(model, ids, steps=5, lr=2e-3)
    live = adapters.logits(model, ids)
    assert (live - adapters.logits(fresh(), ids)).abs().max() > 0.1, "the adapter must have an effect to compare"

    def no_svd(*_, **__):
        raise AssertionError("the export is a LoRA as it stands")

    for name in ("svd", "svdvals", "svd_lowrank", "pca_lowrank"):
        monkeypatch.setattr(torch.linalg if hasattr(torch.linalg, name) else torch, name, no_svd)
    qpeft.export(model, tmp_path / "out")
    monkeypatch.undo()
    stock = PeftModel.from_pretrained(fresh(), str(tmp_path / "out")).eval()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    torch.testing.assert_close(adapters.logits(stock, ids), live, atol=1e-5, rtol=0)
    merged = [adapters.logits(each.merge_and_unload(), ids) for each in (stock, model)]
    torch.testing.assert_close(merged[0], merged[1], atol=1e-5, rtol=0)
    rounded = 2e-6 * live.abs().max().item()  # W + dW is rounded to float32, whatever made dW
    torch.testing.assert_close(merged[1], live, atol=rounded, rtol=0)
