"""The real thing: another process, killed by the system."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpeft.errors import ConfigError
from qpeft.training import TrainSettings, train
from qpeft.training.checkpoints import last_whole
from qpeft.training.metrics_log import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

SCRIPT = """
import json, sys, torch
from qpeft.training import TrainSettings, train
torch.set_num_threads(1)
train(TrainSettings(**json.loads(sys.argv[1])))
"""


def start(settings: TrainSettings) -> subprocess.Popen:
    import json

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(asdict(settings))], env=environment, stderr=subprocess.DEVNULL
    )


def wait_for_step(process: subprocess.Popen, metrics: Path, step: int) -> None:
    while process.poll() is None:
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()):
            return
        time.sleep(0.002)
    pytest.fail(f"the process ended by itself with code {process.returncode}")


def test_a_process_killed_by_the_system_resumes_bit_for_bit(tiny_model, text_file, tmp_path):
    def settings(out: str) -> TrainSettings:
        return TrainSettings(
            model=str(tiny_model),
            data=str(text_file),
            out=str(tmp_path / out),
            method_settings={"r": 4},
            steps=60,
            save_every=4,
            batch_size=2,
        )

    process = start(settings("killed"))
    wait_for_step(process, tmp_path / "killed" / "metrics.jsonl", 10)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(ConfigError, match="another process is training in"):
        train(settings("killed"))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert last_whole(tmp_path / "killed" / "checkpoints") is not None
    resumed, unbroken = train(settings("killed")), train(settings("unbroken"))
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (resumed, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (read_rows(run.out / "metrics.jsonl") for run in (resumed, unbroken))
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
