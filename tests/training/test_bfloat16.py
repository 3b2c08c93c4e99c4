"""Runs on a base in bfloat16; tests/real has the same on SmolLM2."""

import pytest
from half_runs import live_in_bfloat16


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("method", ["qpa", "quantum_peft"])
def test_killed_run_in_bfloat16_resumes_and_is_exported_and_merged(settings, tmp_path, method):
    asked = settings(method=method, dtype="bfloat16", steps=3, save_every=1, eval_every=3)
    live_in_bfloat16(asked, tmp_path)
