"""A run of the feed-forward adapter, which has no stock folder: trained itself, or written by QPA."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.training import TrainSettings, train

KINDS = {
    "bottleneck": {"method": "bottleneck", "method_settings": {"bottleneck_size": 8}},
    "qpa": {
        "method": "qpa",
        "host": "bottleneck",
        "method_settings": {"bottleneck_size": 8, "chunk_size": 32, "hidden": (6,), "n_layers": 2},
    },
}
NUMBERS = 2 * (2 * 16 * 8 + 8 + 16)


@pytest.fixture
def run(tiny_model, text_file, tmp_path):
    def make(kind):
        return train(
            TrainSettings(
                model=str(tiny_model),
                data=str(text_file),
                out=str(tmp_path / "run"),
                steps=6,
                lr=5e-3,
                batch_size=4,
                seq_len=16,
                eval_blocks=8,
                **KINDS[kind],
            )
        )

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_run_folder_without_an_exported_adapter(run, tiny_model, kind):
    result = run(kind)
    assert result.after.loss < result.before.loss
    assert (result.deployed, result.exported_bytes, result.has_stock_form) == (NUMBERS, 0, False)
    assert (result.trainable == NUMBERS) == (kind == "bottleneck")
    assert not result.exported.exists()
    card = (result.out / "README.md").read_text(encoding="utf-8")
    assert "stock PEFT has no such adapter" in card
    assert "qpeft.load(AutoModelForCausalLM" in card
    assert "exported" not in card
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.arange(20).view(2, 10)
    before = base(input_ids=ids).logits
    assert not torch.equal(qpeft.load(base, result.adapter).eval()(input_ids=ids).logits, before)
