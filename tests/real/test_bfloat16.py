"""A run on SmolLM2 in bfloat16 on the CPU: it resumes, and is exported and merged."""

import pytest
from half_runs import live_in_bfloat16
from snippets import ROOT

from qpeft_lab import RunSettings

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def test_killed_run_in_bfloat16_resumes_and_is_exported_and_merged(tmp_path):
    settings = RunSettings(
        model=str(ROOT / "build" / "smollm2"),
        data=str(ROOT / "examples" / "restaurants" / "train.jsonl"),
        method="qpa",
        dtype="bfloat16",
        steps=3,
        batch_size=1,
        seq_len=96,
        eval_every=3,
        eval_blocks=2,
        save_every=1,
        out=str(tmp_path / "run"),
    )
    live_in_bfloat16(settings, tmp_path)
