"""Hosts of QPA: which settings and tasks are refused."""

import dataclasses

import pytest

from qpeft.errors import ConfigError
from qpeft.training import TrainSettings, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:QPA trains"),  # the model is tiny
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT's word on LayerNorm
]
OF_HOST = {
    "bottleneck": {"bottleneck_size": 8},
    "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4},
}
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


def test_host_is_refused_for_other_methods(settings):
    with pytest.raises(ConfigError, match="host prefix is for method qpa; method lora has no host"):
        train(dataclasses.replace(settings("prefix"), method="lora"))


def test_unknown_setting_names_the_host(settings):
    with pytest.raises(ConfigError, match="unknown setting of host prefix: 'lora_alpha'"):
        train(settings("prefix", method_settings={"lora_alpha": 4}))


def test_prefix_is_subtracted_from_the_context(settings):
    with pytest.raises(ConfigError, match="virtual tokens"):
        train(settings("prefix", seq_len=64))


def test_refusal_of_peft_is_a_config_error(settings):
    with pytest.raises(ConfigError, match=r"Conv1D.* not supported"):
        train(settings("loha"))


def test_prompt_method_is_refused_for_images(settings):
    with pytest.raises(ConfigError, match="images do not have"):
        train(settings("prompt", task="image-classification"))
