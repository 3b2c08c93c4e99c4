"""Every adapter that a run knows, trained itself and written by QPA: scored, saved, reloaded, exported."""

import copy
import dataclasses
import math
import shutil

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.errors import ConfigError
from qpeft.methods import hosts
from qpeft.training import TrainSettings, train
from qpeft.training.blocks import load_blocks
from qpeft.training.metrics import evaluate_language_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:QPA trains"),  # the model is tiny
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT's word on LayerNorm
]
OF_HOST = {
    "bottleneck": {"bottleneck_size": 8},
    "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4},
}
ON_GPT2 = sorted({*hosts()} - {"loha"})
GENERATOR = {"chunk_size": 32, "hidden": (6,), "n_layers": 2}


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    def make(host, method="qpa", **changes):
        fields = {
            "model": str(tiny_model),
            "data": str(text_file),
            "out": str(tmp_path / f"{method}-{host}"),
            "method": method,
            "host": host if method == "qpa" else "lora",
            "method_settings": {**OF_HOST.get(host, {}), **(GENERATOR if method == "qpa" else {})},
            "steps": 4,
            "lr": 2e-3,
            "batch_size": 4,
            "seq_len": 12,
            "eval_blocks": 6,
            "save_every": 2,
        }
        return TrainSettings(**{**fields, **changes})

    return make


@pytest.mark.parametrize("host", ON_GPT2)
def test_a_run_of_qpa_over_it(settings, tokenizer, host):
    run = settings(host)
    result = train(run)
    assert math.isfinite(result.after.loss)
    assert result.after.loss != result.before.loss
    base = AutoModelForCausalLM.from_pretrained(run.model)
    blocks = load_blocks(run, run.seq_len, tokenizer).evaluation
    loaded = qpeft.load(copy.deepcopy(base), result.adapter)
    assert evaluate_language_model(loaded, blocks, run.batch_size).loss == pytest.approx(result.after.loss, abs=1e-6)
    if host != "bottleneck":
        stock = PeftModel.from_pretrained(base, result.exported)
        assert evaluate_language_model(stock, blocks).loss == pytest.approx(result.after.loss, abs=1e-5)


@pytest.mark.parametrize("host", ["prefix", "prompt", "pissa", "vera", "ln_tuning"])
def test_a_resumed_run_equals_the_unbroken_one(settings, host, tmp_path):
    unbroken = train(settings(host))
    again = settings(host, out=str(tmp_path / "again"))
    train(again)
    folder = tmp_path / "again"
    for name in ("adapter", "exported"):
        shutil.rmtree(folder / name)
    (folder / "result.json").unlink()
    assert (folder / "checkpoints" / "checkpoint-2").is_dir()
    resumed = train(again)
    assert resumed.after == unbroken.after


@pytest.mark.parametrize("host", sorted({*ON_GPT2} - {"lora", "dora", "bottleneck"}))
def test_a_run_of_the_stock_adapter(settings, host):
    result = train(settings(host, method=host))
    assert math.isfinite(result.after.loss)
    assert result.trainable == result.deployed


def test_a_host_is_for_qpa(settings):
    with pytest.raises(ConfigError, match="host prefix is for method qpa; method lora has no host"):
        train(dataclasses.replace(settings("prefix"), method="lora"))


def test_a_setting_that_the_host_lacks_is_named_after_it(settings):
    with pytest.raises(ConfigError, match="unknown setting of host prefix: 'lora_alpha'"):
        train(settings("prefix", method_settings={"lora_alpha": 4}))


def test_a_prefix_leaves_no_room_for_itself_in_the_context(settings):
    with pytest.raises(ConfigError, match="virtual tokens"):
        train(settings("prefix", seq_len=64))


def test_peft_says_what_a_host_cannot_adapt(settings):
    with pytest.raises(ConfigError, match=r"Conv1D.* not supported"):
        train(settings("loha"))


def test_images_have_no_place_for_a_prompt(settings):
    with pytest.raises(ConfigError, match="images have none"):
        train(settings("prompt", task="image-classification"))
