"""Jobs: costs, retries after failures, budget, log."""

import copy
import json
import threading

import numpy as np
import pytest
from watched_lock import Watched

from qpeft.backends import ExactBackend, Jobs
from qpeft.backends.jobs import Used
from qpeft.circuits import Ansatz
from qpeft.errors import BackendError, CheckpointError, ConfigError

LADDER = Ansatz("ry_ladder", 2, 1)
ANGLES = np.array([[[0.3, 0.7]], [[0.1, 0.2]]])  # two sets


class Failing(ExactBackend):
    """Fails `failures` times, then answers."""

    name = "failing"

    def __init__(self, failures, error=None):
        self.failures, self.calls = failures, 0
        self.error = error or ConnectionError("queue is down\nsecond line")

    def run(self, ansatz, angles, shots, seed):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return super().run(ansatz, angles, shots, seed)


class Answering(ExactBackend):
    """Returns a fixed answer."""

    name = "answering"

    def __init__(self, answer):
        self.answer = np.asarray(answer, dtype=float)

    def run(self, ansatz, angles, shots, seed):
        return self.answer


@pytest.fixture
def naps(monkeypatch):
    slept = []
    monkeypatch.setattr("qpeft.backends.jobs.time.sleep", slept.append)
    return slept


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class SentTwice(ExactBackend):
    """While it runs its first job, another thread sends one as well."""

    threads: tuple[threading.Thread, ...] = ()
    answered = 0

    def run(self, ansatz, angles, shots, seed):
        if not self.threads:
            self.threads = (threading.Thread(target=self.send),)
            self.threads[0].start()
            self.jobs._lock.waited.wait()
            assert self.answered == 0
        self.answered += 1
        return super().run(ansatz, angles, shots, seed)

    def send(self):
        try:
            self.jobs.run(LADDER, ANGLES, "value")
        finally:
            self.jobs._lock.waited.set()


def test_jobs_of_two_threads_run_one_after_the_other():
    backend = SentTwice()
    backend.jobs = jobs = Jobs(backend, 100)
    jobs._lock = Watched()
    jobs.run(LADDER, ANGLES, "value")
    backend.threads[0].join()
    assert (jobs.used.jobs, jobs.used.circuits, jobs.used.failures) == (2, 4, 0)


def test_deep_copies_share_device_and_budget():
    backend = ExactBackend()
    backend.handle = threading.Lock()  # a device that cannot be copied
    jobs = Jobs(backend, 100, shot_budget=300)
    copy.deepcopy(jobs).run(LADDER, ANGLES, "value")
    assert jobs.used.shots == 200
    with pytest.raises(BackendError, match="budget"):
        jobs.run(LADDER, ANGLES, "value")


def test_failed_job_is_retried_after_increasing_waits(naps, tmp_path):
    jobs = Jobs(Failing(8), 100, retries=8)
    jobs.log_to(tmp_path / "jobs.jsonl")
    notes = []
    jobs.on_failure = notes.append
    expected = Jobs(ExactBackend(), 100).run(LADDER, ANGLES, "value")
    assert np.array_equal(jobs.run(LADDER, ANGLES, "value"), expected)  # as without failures
    assert sum(naps) == 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60
    assert max(naps) == 1  # in steps, so that a stop request takes effect
    assert notes[1] == "a job on failing failed (queue is down); retrying in 2 s"
    assert len(notes) == 8
    # a device may have run what it did not answer
    assert (jobs.used.jobs, jobs.used.failures, jobs.used.circuits, jobs.used.shots) == (1, 8, 2, 9 * 200)
    entries = lines(tmp_path / "jobs.jsonl")
    assert [e["event"] for e in entries] == ["sent", "failed"] * 8 + ["sent", "answered"]
    assert [e["error"] for e in entries if e["event"] == "failed"] == ["queue is down"] * 8
    assert [e["attempt"] for e in entries if e["event"] == "sent"] == list(range(1, 10))
    assert entries[-1]["purpose"] == "value"


def test_job_that_fails_too_often_raises_and_later_jobs_run(naps):
    jobs = Jobs(Failing(3), 100, retries=2)
    with pytest.raises(BackendError, match="a job on failing failed 3 times, the last time with: queue is down"):
        jobs.run(LADDER, ANGLES, "value")
    assert jobs.run(LADDER, ANGLES, "value").shape == (2, 4)


def test_programming_error_after_an_answer_is_retried(naps):
    backend = Failing(0, AttributeError("'NoneType' object has no attribute 'json'"))
    jobs = Jobs(backend, 100)
    jobs.run(LADDER, ANGLES, "value")
    backend.failures = backend.calls + 1
    jobs.run(LADDER, ANGLES, "value")
    assert (jobs.used.jobs, jobs.used.failures) == (2, 1)


def test_retries_stay_within_the_budget(naps):
    backend = Failing(99)
    with pytest.raises(BackendError, match="400 of the shot budget of 500 are used"):
        Jobs(backend, 100, shot_budget=500).run(LADDER, ANGLES, "value")
    assert backend.calls == 2


def test_shots_of_a_killed_job_count_as_used(tmp_path):
    class Killed(BaseException):
        pass

    class Dying(ExactBackend):
        def run(self, *_):
            raise Killed

    jobs = Jobs(Dying(), 100)
    jobs.log_to(tmp_path / "jobs.jsonl")
    with pytest.raises(Killed):
        jobs.run(LADDER, ANGLES, "value")
    again = Jobs(ExactBackend(), 100)
    again.log_to(tmp_path / "jobs.jsonl")
    assert (again.used.shots, again.used.jobs) == (200, 0)


def test_stop_request_ends_waiting_and_prevents_jobs_on_hardware(naps):
    backend = Failing(99)
    jobs = Jobs(backend, 100)
    jobs.stop_wanted = lambda: bool(naps)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(LADDER, ANGLES, "value")
    assert len(naps) == 1
    backend.is_simulator, calls = False, backend.calls
    with pytest.raises(KeyboardInterrupt, match="Stopped before a job was sent to failing"):
        jobs.run(LADDER, ANGLES, "value")
    assert backend.calls == calls


@pytest.mark.parametrize("error", [TypeError("no such argument"), ConfigError("too few wires")])
def test_permanent_errors_are_not_retried(naps, error):
    backend = Failing(9, error)
    with pytest.raises(type(error)):
        Jobs(backend, 100).run(LADDER, ANGLES, "value")
    assert backend.calls == 1
    assert naps == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1, 0, 0, 0]], r"answering returned shape \(1, 4\), expected \(2, 4\)"),
        ([[1, 0, 0, 0], [np.nan, 0, 0, 1]], "values that are not probabilities"),
        ([[1, 0, 0, 0], [0.5, 0, 0, 0]], "values that are not probabilities"),
        ([[1, 0, 0, 0], [1.5, -0.5, 0, 0]], "values that are not probabilities"),
    ],
)
def test_invalid_probabilities_are_failures(naps, answer, message):
    with pytest.raises(BackendError, match=message):
        Jobs(Answering(answer), 100, retries=1).run(LADDER, ANGLES, "value")
    assert naps == [1]


def test_job_beyond_the_budget_is_not_sent():
    backend = Failing(0)
    jobs = Jobs(backend, 100, shot_budget=500)
    jobs.run(LADDER, ANGLES, "value")
    jobs.run(LADDER, ANGLES, "value")
    with pytest.raises(BackendError, match="the next job needs 200 shots, and 400 of the shot budget of 500 are used"):
        jobs.run(LADDER, ANGLES, "value")
    assert backend.calls == 2


def test_log_is_continued_after_an_incomplete_line(tmp_path):
    path = tmp_path / "jobs.jsonl"
    begun = Jobs(ExactBackend(), 100)
    begun.log_to(path)
    begun.run(LADDER, ANGLES, "value")
    whole = path.read_text()
    path.write_text(whole + '{"job": 2, "circ')  # a kill in the middle of a line
    jobs = Jobs(ExactBackend(), 100, shot_budget=300)
    jobs.log_to(path)
    assert (jobs.used.jobs, jobs.used.circuits, jobs.used.shots) == (1, 2, 200)
    assert path.read_text() == whole
    with pytest.raises(BackendError, match="200 of the shot budget of 300 are used"):
        jobs.run(LADDER, ANGLES, "value")


def test_file_that_is_not_a_log_is_refused(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"loss": 3.2}\n')
    with pytest.raises(CheckpointError, match="is not a log of jobs"):
        Jobs(ExactBackend()).log_to(path)


def test_exact_jobs_use_no_shots():
    jobs = Jobs(ExactBackend())
    jobs.run(LADDER, ANGLES, "value")
    assert {**jobs.used.to_dict(), "seconds": 0.0} == {**Used(jobs=1, circuits=2).to_dict(), "seconds": 0.0}
