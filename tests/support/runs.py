"""Kills runs, and compares two runs."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from qpeft_lab.progress import Progress
from qpeft_lab.training.run_folder import read_rows


class Killed(BaseException):
    """Simulates kill -9: no handler of errors catches it."""


class Recorder(Progress):
    """Records every event, and runs `at(step)` after each step."""

    def __init__(self, at=lambda step: None):
        self.events, self._at = [], at

    def on_stage(self, what):
        self.events.append(what)

    on_note = on_stage

    def on_start(self, total, done):
        self.events.append(("start", total, done))

    def on_step(self, step, loss):
        self.events.append(("step", step))
        self._at(step)

    def on_eval(self, step, score):
        self.events.append(("eval", step, score.loss))


def kill_at(step: int) -> Recorder:
    """A progress that kills the run after this step."""

    def kill(done):
        if done == step:
            raise Killed

    return Recorder(kill)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's or model's folder."""
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def losses(out: Path) -> list[dict]:
    """The rows of metrics.jsonl without their times."""
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_rows(Path(out) / "metrics.jsonl")
    ]


def assert_same_result(out: Path, other: Path) -> None:
    """Equal metrics, and tensors that are equal bit for bit, in every folder of the runs."""
    for name in ("adapter", "exported"):
        assert (out / name).exists() == (other / name).exists()
        if (out / name).exists():
            torch.testing.assert_close(weights(out / name), weights(other / name), atol=0, rtol=0)
    assert losses(out) == losses(other)
