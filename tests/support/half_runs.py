"""A whole life in bfloat16 on the CPU: a killed run resumes, and its adapter is exported and merged."""

import pytest
import torch
from peft import PeftModel
from runs import Killed, kill_at, losses
from transformers import AutoModelForCausalLM

import qpeft
from qpeft_lab import train

IDS = torch.arange(3, 15).view(1, -1)


def live_in_bfloat16(settings, folder):
    """Three steps of `settings`, the second of which is followed by a kill, and what comes after."""
    with pytest.raises(Killed):
        train(settings, kill_at(2))

    result = train(settings)
    assert [row["step"] for row in losses(result.out) if "loss" in row] == [1, 2, 3]

    live = qpeft.load(_base(settings, torch.bfloat16), result.adapter)
    report = qpeft.export(live, folder / "exported")
    assert report.max_layer_difference <= 1e-6  # of layers in float32, where nothing is rounded

    stock = PeftModel.from_pretrained(_base(settings, torch.bfloat16), folder / "exported")
    with torch.no_grad():
        assert torch.equal(stock.eval()(IDS).logits, live.eval()(IDS).logits)
        # in float32 merging changes nothing, in bfloat16 it takes a part that is told
        exact = PeftModel.from_pretrained(
            _base(settings, torch.float32), folder / "exported"
        ).eval()
        adapted = exact(IDS).logits
        merged = exact.merge_and_unload()(IDS).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4 * adapted.abs().max().item(), rtol=0)
    assert report.lost_by_merging > 0


def _base(settings, dtype):
    return AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
