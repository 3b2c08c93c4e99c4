"""Scores of adapters whose circuits on inputs are measured: with simulated shots, or on a device.

    exact score, which counts the circuits --> forecast, refused above the budget --> score with measured circuits

A device's answers are kept in files, so that the same evaluation sends only what is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from qpeft.backends import BackendSettings, CircuitRun, Jobs, as_backend
from qpeft.backends.backend import Numbers
from qpeft.circuits import Ansatz
from qpeft.circuits.amplitude import squares_behind
from qpeft.core.linear_tuner import LinearAdapter
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import replace_file
from qpeft_lab.files import locked
from qpeft_lab.training.input_circuits import angles_on_inputs, circuit_on_inputs
from qpeft_lab.training.score import Score

_LARGEST_JOB = 256  # circuits
_DIFFERENT = 0.01  # radians, the mean difference from which stored angles are of other inputs

# `LinearAdapter.measure`: squared amplitudes (..., D) of states a (..., D), behind a circuit at the
# angles `values`, or for None behind orthogonal matrices (..., D, D)
Measure = Callable[[Tensor, Any, Tensor], Tensor]


class StoredJobs(Jobs):
    """The jobs of one evaluation in their order, each with its angles and answer in a file of the
    folder `store_in`.
    """

    def store_in(self, folder: Path) -> int:
        """Keep log and answers in this folder, and use the answers that it has; how many circuits
        they have.
        """
        self.log_to(folder / "jobs.jsonl")
        self._files = (folder / f"{number}.safetensors" for number in count())
        stored = [_read(path) for path in folder.glob("*.safetensors")]
        return sum(len(job["p"]) for job in stored if job is not None)

    def run(self, ansatz: Ansatz, angles: Numbers | Tensor, state: bytes = b"") -> Any:
        """As `Jobs.run`, or the stored answer. Raises CheckpointError for one to other inputs."""
        assert not isinstance(angles, Tensor)  # an evaluation has no gradients
        path = next(self._files)
        stored = _read(path)
        if stored is not None:
            _check_angles(stored["angles"], angles, path)
            return stored["p"]
        answer = super().run(ansatz, angles, state)
        with replace_file(path) as temporary:
            tensors = {"p": answer, "angles": angles}
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
        return answer


def _read(path: Path) -> dict[str, Numbers] | None:
    """None for a file that is missing or damaged, whose job is sent again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _check_angles(stored: Numbers, angles: Numbers, path: Path) -> None:
    """Raise CheckpointError if the stored answer is to other circuits."""
    # other processors round differently, and the angle of a value near 0 may be any
    if stored.shape != angles.shape or np.abs(stored - angles).mean() > _DIFFERENT:
        raise CheckpointError(
            f"{path} has answers for other inputs, as of another base; remove its folder"
        )


class MeasuredPoint(NamedTuple):
    """The costs at one number of shots and one noise, and the score with these counts."""

    costs: dict[str, Any]
    score: Score


class MeasuredScores(NamedTuple):
    """The score with exact probabilities, and those of all points."""

    exact: Score
    points: list[MeasuredPoint]


def measured_scores(
    model: Any,
    score: Callable[[], Score],
    points: Sequence[BackendSettings],
    seed: int = 0,
    forecast: Callable[[list[dict[str, Any]]], None] = lambda costs: None,
    folder_of: Callable[[BackendSettings], Path] = lambda point: Path(),
) -> MeasuredScores:
    """The score with exact probabilities P; and the costs of each point, with its score with counts
    of the backend.

    Args:
        model: With adapters that measure circuits on their inputs.
        score: Computes the score; called once for the exact one and once for each point.
        points: They differ in shots and noise, and share backend and shot budget. The backend exact
            counts (1 - noise) P + noise / 2**q; without shots it does not sample.
        seed: Of the simulated counts.
        forecast: Called with the costs of all points before any shot.
        folder_of: Where jobs and answers of a point on a device are kept; it belongs to this
            evaluation.

    Raises:
        ConfigError: The model has other adapters, the shot budget does not suffice, or the backend
            cannot run the circuits; nothing is sent.
        BackendError: A job failed.
        CheckpointError: A folder has answers for other inputs.
    """
    adapters = _measuring_adapters(model)
    n_qubits = max(adapter.n_qubits for adapter in adapters)
    is_simulated = points[0].backend == "exact"
    queues = [_queue(point, n_qubits, seed, is_simulated=is_simulated) for point in points]
    counter = _Counter([] if is_simulated else queues)
    exact = _score_with(counter, adapters, score)

    costs = [_costs(point, counter.n_circuits) for point in points]
    measures: list[Measure] = []
    with ExitStack() as locks:
        for point, queue, cost in zip(points, queues, costs, strict=True):
            if is_simulated:
                measures.append(_Simulated(point, np.random.default_rng(seed)))
                continue
            folder = folder_of(point)
            locks.enter_context(locked(folder))
            cost["backend"] = queue.backend.name
            cost["jobs"] = counter.n_jobs
            cost["answered_before"] = queue.store_in(folder)
            measures.append(_OnDevice(queue))
        forecast(costs)
        _check_budget(points[0].shot_budget, costs, queues)
        measured = [
            MeasuredPoint(cost, _score_with(measure, adapters, score))
            for cost, measure in zip(costs, measures, strict=True)
        ]
    return MeasuredScores(exact, measured)


def _measuring_adapters(model: Any) -> list[LinearAdapter]:
    """The adapters of the model. Raises ConfigError unless all of them measure circuits."""
    adapters = [module for module in model.modules() if isinstance(module, LinearAdapter)]
    if not adapters or not all(adapter.n_qubits for adapter in adapters):
        raise ConfigError(
            "this adapter has no circuits that are measured at inference. Its method may have them"
            " with another readout, or with blocks of 2**q values: probabilities do not tell signs"
        )
    return adapters


def _queue(point: BackendSettings, n_qubits: int, seed: int, *, is_simulated: bool) -> StoredJobs:
    """The jobs of a point. The noise of simulated ones is added to their probabilities."""
    backend = as_backend(point.backend, n_qubits, 0.0 if is_simulated else point.noise)
    return StoredJobs(backend, point.shots, seed=seed, shot_budget=point.shot_budget)


def _score_with(
    measure: Measure, adapters: Sequence[LinearAdapter], score: Callable[[], Score]
) -> Score:
    """The score with these squared amplitudes; nothing is left in the adapters."""
    for adapter in adapters:
        adapter.measure = measure
    try:
        return score()
    finally:
        for adapter in adapters:
            adapter.measure = None


def _costs(point: BackendSettings, n_circuits: int) -> dict[str, Any]:
    shots = point.shots or 0
    return {
        "noise": point.noise,
        "shots_per_circuit": shots,
        "circuits": n_circuits,
        "shots": n_circuits * shots,
    }


def _check_budget(
    shot_budget: int | None, costs: Sequence[dict[str, Any]], queues: Sequence[StoredJobs]
) -> None:
    """Raise ConfigError if the shots of all points, those sent before included, are not in it."""
    n_needed = 0
    for cost in costs:
        n_circuits = cost["circuits"] - cost.get("answered_before", 0)
        n_needed += n_circuits * cost["shots_per_circuit"]
    total = Jobs(queues[0].backend, shot_budget=shot_budget)
    total.used["shots"] = sum(queue.used["shots"] for queue in queues)
    if n_needed:
        total.check_budget(n_needed, ConfigError)


# -- ways to measure: each is a `Measure`


@dataclass
class _Counter:
    """Exact squares. Counts circuits and jobs, and checks that each queue can run the circuits."""

    queues: Sequence[StoredJobs]
    n_circuits: int = 0
    n_jobs: int = 0
    checked: set[Ansatz] = field(default_factory=set)

    def __call__(self, a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        n_states = a[..., 0].numel()
        self.n_circuits += n_states
        self.n_jobs += -(-n_states // _LARGEST_JOB)  # rounded up
        if self.queues:
            self._check(circuit_on_inputs(a.shape[-1], circuit))
        return _squares(a, circuit, values)

    def _check(self, ansatz: Ansatz) -> None:
        """Raise ConfigError if a queue cannot run it."""
        if ansatz in self.checked:
            return
        # warnings of few shots for 2**q probabilities: QAA reads q numbers
        with warnings.catch_warnings(action="ignore"):
            for queue in self.queues:
                CircuitRun(ansatz, queue, trained=False)
        self.checked.add(ansatz)


@dataclass
class _OnDevice:
    """Frequencies of a device."""

    queue: StoredJobs

    def __call__(self, a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        ansatz = circuit_on_inputs(a.shape[-1], circuit)
        inputs = a.cpu().double()  # accelerators may have no float64
        norms = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)  # (..., 1)
        # of 0 the circuit prepares the first basis state, and the frequencies are multiplied by 0
        states = inputs / norms.where(norms > 0, 1)
        numbers = values.cpu().double().numpy()
        angles = angles_on_inputs(states.numpy(), circuit, numbers)  # (..., n_angles)
        angles = angles.reshape(-1, angles.shape[-1])
        answers = [
            self.queue.run(ansatz, angles[start : start + _LARGEST_JOB])
            for start in range(0, len(angles), _LARGEST_JOB)
        ]
        frequencies = torch.from_numpy(np.concatenate(answers)).view(a.shape).to(norms)
        return (frequencies * norms.square()).to(a)


@dataclass
class _Simulated:
    """Frequencies of simulated shots of depolarized probabilities; without shots these."""

    point: BackendSettings
    random: np.random.Generator

    def __call__(self, a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        noise = self.point.noise
        n_shots = self.point.shots
        # accelerators may have no float64
        squares = _squares(a.cpu().double(), circuit, values.cpu().double())
        total = squares.sum(-1, keepdim=True)  # |a|^2, which is kept classically
        exact = squares / total.where(total > 0, 1)
        p = (1 - noise) * exact + noise / a.shape[-1]
        if n_shots is not None:
            counts = self.random.multinomial(n_shots, p.cpu().numpy())
            p = torch.from_numpy(counts / n_shots).to(p)
        return (p * total).to(a)


def _squares(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
    """As `LinearAdapter.measure`, exactly."""
    if circuit is None:
        return torch.einsum("...ij,...j->...i", values, a).square()
    return squares_behind(a.reshape(-1, a.shape[-1]), circuit, values).view(a.shape)
