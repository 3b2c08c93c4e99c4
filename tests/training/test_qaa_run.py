"""A run of QAA, which has no stock folder: trained, loaded, killed and resumed."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.errors import CheckpointError, ConfigError
from qpeft.training import TrainSettings, train
from qpeft.training.progress import Silent

NUMBERS = 2 * (12 + 32 * 4 + 32)


class Killed(BaseException):
    """Stands in for kill -9: nothing that handles errors may see it."""


class KillAt(Silent):
    def __init__(self, step):
        self._at = step

    def on_step(self, step, loss):
        if step == self._at:
            raise Killed


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    def make(out="run", **changes):
        values = {
            "model": str(tiny_model),
            "data": str(text_file),
            "out": str(tmp_path / out),
            "method": "qaa",
            "steps": 7,
            "lr": 5e-3,
            "batch_size": 4,
            "seq_len": 16,
            "save_every": 2,
            "eval_blocks": 8,
        }
        return TrainSettings(**{**values, **changes})

    return make


def test_run_folder_without_an_exported_adapter(settings, tiny_model):
    result = train(settings())
    assert result.after.loss < result.before.loss
    assert (result.deployed, result.exported_bytes, result.has_stock_form) == (NUMBERS, 0, False)
    assert result.trainable == NUMBERS
    assert not result.exported.exists()
    card = (result.out / "README.md").read_text(encoding="utf-8")
    assert "stock PEFT has no such adapter" in card
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.arange(20).view(2, 10)
    before = base(input_ids=ids).logits
    assert not torch.equal(qpeft.load(base, result.adapter).eval()(input_ids=ids).logits, before)


@pytest.mark.long
@pytest.mark.parametrize("method_settings", [{}, {"ansatz": "rxyz", "share_circuit": True}], ids=str)
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(settings, method_settings):
    unbroken = train(settings("unbroken", method_settings=method_settings))
    for step in (3, 6):
        with pytest.raises(Killed):
            train(settings(method_settings=method_settings), KillAt(step))
    resumed = train(settings(method_settings=method_settings))
    ours, theirs = (load_file(r.adapter / "adapter_model.safetensors") for r in (resumed, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match="method_settings was"):
        train(settings(method_settings={"ansatz": "qaa"}))


def test_an_unknown_setting_is_refused(settings):
    with pytest.raises(ConfigError, match="unknown setting of method qaa: 'ansats'; did you mean 'ansatz'"):
        train(settings(method_settings={"ansats": "qaa"}))
