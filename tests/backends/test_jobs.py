"""Jobs: costs, failures, budget, log."""

import copy
import json
import threading

import numpy as np
import pytest

from qpeft.backends import ExactBackend, Jobs
from qpeft.circuits import Ansatz
from qpeft.errors import BackendError, CheckpointError, ConfigError

LADDER = Ansatz("ry_ladder", 2, 1)
ANGLES = np.array([[[0.3, 0.7]], [[0.1, 0.2]]])  # two sets


class Failing(ExactBackend):
    """Its first `failures` jobs fail."""

    name = "failing"

    def __init__(self, failures):
        self.failures, self.calls = failures, 0

    def run(self, ansatz, angles, shots, seed):
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("queue is down\nsecond line")
        return super().run(ansatz, angles, shots, seed)


class Answering(ExactBackend):
    """Returns a fixed answer."""

    name = "answering"

    def __init__(self, answer):
        self.answer = np.asarray(answer, dtype=float)

    def run(self, ansatz, angles, shots, seed):
        return self.answer


def costs(jobs):
    return tuple(jobs.used[name] for name in ("jobs", "circuits", "shots"))


def test_deep_copies_share_device_and_budget():
    backend = ExactBackend()
    backend.handle = threading.Lock()  # a device that cannot be copied
    jobs = Jobs(backend, 100, shot_budget=300)
    copy.deepcopy(jobs).run(LADDER, ANGLES)
    assert jobs.used["shots"] == 200
    with pytest.raises(BackendError, match="budget"):
        jobs.run(LADDER, ANGLES)


def test_failed_job_raises_and_later_jobs_run(tmp_path):
    jobs = Jobs(Failing(1), 100)
    jobs.log_to(tmp_path / "jobs.jsonl")
    with pytest.raises(BackendError, match=r"^a job on failing failed: ConnectionError: queue is down. Checkpoints"):
        jobs.run(LADDER, ANGLES)
    assert np.array_equal(jobs.run(LADDER, ANGLES), Jobs(ExactBackend(), 100).run(LADDER, ANGLES))
    assert costs(jobs) == (1, 2, 400)  # a device may have run what it did not answer
    entries = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["sent", "sent", "answered"]


def test_shots_of_a_killed_job_count_as_used(tmp_path):
    class Killed(BaseException):
        pass

    class Dying(ExactBackend):
        def run(self, *_):
            raise Killed

    jobs = Jobs(Dying(), 100)
    jobs.log_to(tmp_path / "jobs.jsonl")
    with pytest.raises(Killed):
        jobs.run(LADDER, ANGLES)
    again = Jobs(ExactBackend(), 100)
    again.log_to(tmp_path / "jobs.jsonl")
    assert costs(again) == (0, 0, 200)


@pytest.mark.parametrize(
    "answer",
    [
        [[1, 0, 0, 0]],
        [[1, 0, 0, 0], [np.nan, 0, 0, 1]],
        [[1, 0, 0, 0], [0.5, 0, 0, 0]],
        [[1, 0, 0, 0], [1.5, -0.5, 0, 0]],
    ],
)
def test_invalid_probabilities_are_failures(answer):
    with pytest.raises(BackendError, match="answering returned"):
        Jobs(Answering(answer), 100).run(LADDER, ANGLES)


def test_log_is_continued_after_an_incomplete_line(tmp_path):
    path = tmp_path / "jobs.jsonl"
    begun = Jobs(ExactBackend(), 100)
    begun.log_to(path)
    begun.run(LADDER, ANGLES)
    whole = path.read_text()
    path.write_text(whole + '{"job": 2, "circ')  # a kill in the middle of a line
    jobs = Jobs(ExactBackend(), 100, shot_budget=300)
    jobs.log_to(path)
    assert costs(jobs) == (1, 2, 200)
    assert path.read_text() == whole
    with pytest.raises(BackendError, match="300"):
        jobs.run(LADDER, ANGLES)


def test_file_that_is_not_a_log_is_refused(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"loss": 3.2}\n')
    with pytest.raises(CheckpointError, match=r"jobs\.jsonl"):
        Jobs(ExactBackend()).log_to(path)


def test_distributed_training_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="exact simulator"):
        Jobs(ExactBackend()).run(LADDER, ANGLES)
