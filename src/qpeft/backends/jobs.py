"""Sends jobs to a backend: seeds, cost, log, retries after failures, once for all processes."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qpeft.backends.backend import Backend, ExactBackend, Numbers
from qpeft.circuits import Ansatz
from qpeft.errors import BackendError, CheckpointError, ConfigError
from qpeft.files import output_file, write_text

RETRIES = 8
_LONGEST_WAIT = 60.0  # seconds
_PERMANENT = (NotImplementedError, ImportError, ConfigError)  # errors after which a job is not sent again
_PROBABLY_PERMANENT = (TypeError, AttributeError)  # likewise, until a first job has been answered


@dataclass
class Used:
    """The cost of a run so far."""

    jobs: int = 0  # answered
    circuits: int = 0  # in answered jobs
    shots: int = 0  # sent, answered or not: the device may have run them
    failures: int = 0  # jobs without a usable answer
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The jobs of one training run on one backend.

    Args:
        backend: The backend that runs the circuits.
        shots: Shots of each circuit; None: exact probabilities.
        seed: Seed of simulated counts. Counts depend on seed and angles only, so a resumed run draws the same counts
            as an uninterrupted one.
        shot_budget: Maximum number of shots sent in total, including those of repeated jobs.
        retries: Number of times that a failed job is sent again, after 1, 2, 4, ... up to 60 seconds.
        wait: Seconds before the first retry.
    """

    def __init__(
        self,
        backend: Backend,
        shots: int | None = None,
        *,
        seed: int = 0,
        shot_budget: int | None = None,
        retries: int = RETRIES,
        wait: float = 1.0,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"retries must be a whole number, 0 or more, got {retries!r}")
        self.backend = backend
        self.shots = backend.default_shots if shots is None else int(shots)
        self.seed = seed
        self.shot_budget = shot_budget
        self.retries = retries
        self.used = Used()
        self.on_failure: Callable[[str], object] = logging.getLogger("qpeft").warning  # called before each wait
        self.stop_wanted: Callable[[], bool] = lambda: False  # called before each wait, and before each job on hardware
        self._log: Path | None = None
        self._wait = wait
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Jobs:
        """A copied model runs its circuits on the same device and within the same budget."""
        return self

    @property
    def is_exact(self) -> bool:
        """Whether this is qpeft's own simulator with exact probabilities."""
        return type(self.backend) is ExactBackend and self.shots is None

    def log_to(self, path: Path) -> None:
        """Append JSON lines for every job; jobs already in the file, from the same run, count as used.

        Raises:
            CheckpointError: The file is not a log of jobs.
            ConfigError: The folder does not exist.
        """
        if not path.parent.is_dir():
            raise ConfigError(f"log: the folder {path.parent} does not exist; create it, or choose another file")
        self._log = output_file(path)
        self.used = _read_log(self._log)

    def run(self, ansatz: Ansatz, angles: Numbers, purpose: str) -> Numbers:
        """Probabilities or frequencies (B, D) at the angles `(B, *ansatz.angle_shape)`; `purpose` is for the log.

        Raises:
            BackendError: The shot budget is used up, or the job failed too often, also by returning invalid
                probabilities.
        """

        def send() -> Numbers:
            found = self.backend.run(ansatz, angles, self.shots, self.seed_of(angles))
            _check_probabilities(found, (len(angles), 2**ansatz.n_qubits), self.backend.name)
            return found

        return self._once_for_all(lambda: self._send(send, purpose, len(angles)))

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        """Gradient of weights @ p, shape `ansatz.angle_shape`, by the backend's adjoint pass."""
        return self._once_for_all(
            lambda: self._send(lambda: self.backend.adjoint(ansatz, angles, weights), "adjoint", 1)
        )

    def seed_of(self, angles: Numbers) -> int:
        """The seed of a job: a hash of the run's seed, the shots and the angles."""
        key = f"{self.seed}/{self.shots}/".encode() + np.ascontiguousarray(angles).tobytes()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "little")

    def _check_budget(self, n_circuits: int) -> None:
        if self.shot_budget is None or self.shots is None:
            return
        wanted = self.shots * n_circuits
        if self.used.shots + wanted > self.shot_budget:
            raise BackendError(
                f"the next job needs {wanted:,} shots, and {self.used.shots:,} of the shot budget of "
                f"{self.shot_budget:,} are used; none of it was sent. Increase the budget to continue"
            )

    def _send(self, call: Callable[[], Numbers], purpose: str, n_circuits: int) -> Numbers:
        attempts = (self._try(call, purpose, n_circuits, attempt) for attempt in count(1))
        with self._lock:  # one job at a time: threads share the budget and the log, and a device may serve only one
            return next(answer for answer in attempts if answer is not None)

    def _try(self, call: Callable[[], Numbers], purpose: str, n_circuits: int, attempt: int) -> Numbers | None:
        """One attempt; None after a failure that is to be retried."""
        self._check_budget(n_circuits)
        if not self.backend.is_simulator and self.stop_wanted():
            raise KeyboardInterrupt(f"Stopped before a job was sent to {self.backend.name}.")
        shots = n_circuits * (self.shots or 0)
        entry = {"job": self.used.jobs + self.used.failures + 1, "backend": self.backend.name, "purpose": purpose}
        entry |= {"circuits": n_circuits, "attempt": attempt}
        # before it is sent: its shots count even if the process is killed while it runs
        self._note({**entry, "event": "sent", "shots": shots, "seconds": 0.0, "error": None})
        began = time.perf_counter()
        try:
            answer = call()
        except Exception as error:
            seconds = round(time.perf_counter() - began, 6)
            self._note({**entry, "event": "failed", "shots": 0, "seconds": seconds, "error": _reason(error)})
            self._after(error, attempt)
            return None
        seconds = round(time.perf_counter() - began, 6)
        self._note({**entry, "event": "answered", "shots": 0, "seconds": seconds, "error": None})
        return answer

    def _after(self, error: Exception, attempt: int) -> None:
        """Wait before another attempt, or raise."""
        if isinstance(error, _PERMANENT) or (isinstance(error, _PROBABLY_PERMANENT) and not self.used.jobs):
            raise error
        if attempt > self.retries:
            raise BackendError(
                f"a job on {self.backend.name} failed {attempt} times, the last time with: {_reason(error)}. "
                "Checkpoints are intact: resume when the device answers"
            ) from error
        if self.stop_wanted():
            raise KeyboardInterrupt(f"Stopped; the last job on {self.backend.name} had failed.") from error
        wait = min(self._wait * 2 ** (attempt - 1), _LONGEST_WAIT)
        self.on_failure(f"a job on {self.backend.name} failed ({_reason(error)}); retrying in {wait:g} s")
        self._sleep(wait)

    def _sleep(self, seconds: float) -> None:
        """Sleep in steps of at most a second, so that a request to stop takes effect."""
        while seconds > 0 and not self.stop_wanted():
            time.sleep(min(seconds, 1.0))
            seconds -= 1.0

    def _note(self, entry: dict[str, Any]) -> None:
        _count(self.used, entry)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _once_for_all(self, send: Callable[[], Numbers]) -> Numbers:
        """In distributed training the first process sends the job and broadcasts the result to the others.

        A device would answer each process differently, and their adapters would diverge.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_world_size() == 1:
            return send()
        answer: list[Any] = [None, None]
        if torch.distributed.get_rank() == 0:
            try:
                answer[0] = send()
            except Exception as error:
                answer[1] = f"{type(error).__name__}: {error}"
                torch.distributed.broadcast_object_list(answer, src=0)
                raise
        torch.distributed.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise BackendError(f"the first process could not run the circuits: {answer[1]}")
        return answer[0]


def _check_probabilities(found: Numbers, shape: tuple[int, int], name: str) -> None:
    """Raise RuntimeError, which counts as a failed job, unless `found` has `shape` and rows of probabilities."""
    if found.shape != shape:
        raise RuntimeError(f"{name} returned shape {found.shape}, expected {shape}")
    if not np.isfinite(found).all() or (found < -1e-9).any() or (abs(found.sum(axis=1) - 1) > 1e-3).any():
        raise RuntimeError(f"{name} returned values that are not probabilities")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _count(used: Used, entry: dict[str, Any]) -> None:
    answered = entry["event"] == "answered"
    used.jobs += answered
    used.circuits += entry["circuits"] if answered else 0
    used.failures += entry["event"] == "failed"
    used.shots += entry["shots"]
    used.seconds += entry["seconds"]


def _read_log(path: Path) -> Used:
    """The totals of an existing log; an incomplete last line, left by a killed process, is removed from the file."""
    used = Used()
    if not path.exists():
        return used
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    try:
        for line in whole.splitlines():
            _count(used, json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a log of jobs ({error}); move it away and run again") from error
    return used
