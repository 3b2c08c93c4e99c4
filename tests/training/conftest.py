"""Tiny models and data for the tests of training runs."""

import pytest

from qpeft_lab import RunSettings


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    """Settings of a run of LoRA on the tiny GPT-2: seven steps of two halves, so that epochs end
    during the run.
    """

    def make(out="run", **changes) -> RunSettings:
        paths = {
            "model": str(tiny_model),
            "data": str(text_file),
            "out": str(tmp_path / out),
            "method": "lora",
        }
        sizes = {"steps": 7, "seq_len": 64, "batch_size": 2, "gradient_accumulation_steps": 2}
        return RunSettings(**{**paths, **sizes, "save_every": 2, "eval_every": 3, **changes})

    return make
