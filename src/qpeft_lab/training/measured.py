"""Scores of adapters whose circuits on inputs are measured: with simulated shots, or on a device.

    exact score, which counts the circuits --> forecast, refused above the budget --> score with measured circuits

A device's answers are kept in files, so that the same evaluation sends only what is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

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

_JOB, _DIFFERENT = 256, 0.01  # circuits at most; radians


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
        return sum(len(kept["p"]) for path in folder.glob("*.safetensors") if (kept := _read(path)))

    def run(self, ansatz: Ansatz, angles: Numbers) -> Numbers:
        if kept := _read(path := next(self._files)):
            # other processors round differently, and the angle of a value near 0 may be any
            if (
                kept["angles"].shape != angles.shape
                or np.abs(kept["angles"] - angles).mean() > _DIFFERENT
            ):
                raise CheckpointError(
                    f"{path} has answers for other inputs, as of another base; remove its folder"
                )
            return kept["p"]
        found = super().run(ansatz, angles)
        with replace_file(path) as temporary:
            save_file(
                {"p": np.ascontiguousarray(found), "angles": np.ascontiguousarray(angles)},
                temporary,
            )
        return found


def _read(path: Path) -> dict[str, Numbers] | None:
    """None for a file that is missing or damaged, whose job is sent again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def measured_scores(
    model: Any,
    score: Callable[[], Score],
    points: Sequence[BackendSettings],
    seed: int = 0,
    forecast: Callable[[list[dict[str, Any]]], None] = lambda costs: None,
    folder_of: Callable[[BackendSettings], Path] = lambda point: Path(),
) -> tuple[Score, list[tuple[dict[str, Any], Score]]]:
    """The score with exact probabilities P; and the costs of each point, with its score with counts
    of the backend.

    The points differ in shots and noise, and share a shot budget. The backend exact counts (1 -
    noise) P + noise / 2**q; without shots it does not sample. The jobs and answers of another one
    are in a folder for each point, which belongs to this evaluation. All costs are passed to
    `forecast` before any shot. Raises ConfigError, and sends nothing, if the model has other
    adapters, the shot budget does not suffice, or the backend cannot run them; BackendError if a
    job failed, CheckpointError for a folder of other inputs.
    """
    adapters = [module for module in model.modules() if isinstance(module, LinearAdapter)]
    if not adapters or not all(adapter.n_qubits for adapter in adapters):
        raise ConfigError(
            "this adapter has no circuits that are measured at inference. Its method may have them"
            " with another readout, or with blocks of 2**q values: probabilities do not tell signs"
        )
    n_circuits, n_jobs, is_simulated = 0, 0, points[0].backend == "exact"
    widest, checked = max(adapter.n_qubits for adapter in adapters), set[Ansatz]()
    runs = list[tuple[BackendSettings, StoredJobs]]()
    for one in points:
        device = as_backend(one.backend, widest, 0.0 if is_simulated else one.noise)
        runs.append((one, StoredJobs(device, one.shots, seed=seed, shot_budget=one.shot_budget)))

    def counted(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        nonlocal n_circuits, n_jobs
        n_circuits, n_jobs = n_circuits + (n := a[..., 0].numel()), n_jobs - (-n // _JOB)
        if not is_simulated and (ansatz := circuit_on_inputs(a.shape[-1], circuit)) not in checked:
            with warnings.catch_warnings(
                action="ignore"
            ):  # of few shots for 2**q probabilities; QAA reads q numbers
                for _, jobs in runs:
                    CircuitRun(ansatz, jobs, trained=False)  # raises ConfigError if it cannot run
            checked.add(ansatz)
        return _squares(a, circuit, values)

    def scored(measure: Callable[[Tensor, Any, Tensor], Tensor]) -> Score:
        for adapter in adapters:
            adapter.measure = measure
        try:
            return score()
        finally:
            for adapter in adapters:
                adapter.measure = None

    exact, costs, left = scored(counted), list[dict[str, Any]](), 0
    total, measures = Jobs(runs[0][1].backend, shot_budget=points[0].shot_budget), []
    with ExitStack() as locks:
        for point, jobs in runs:
            shots = point.shots or 0
            one = {
                "noise": point.noise,
                "shots_per_circuit": shots,
                "circuits": n_circuits,
                "shots": n_circuits * shots,
            }
            measures.append(partial(_simulated, point, np.random.default_rng(seed)))
            if not is_simulated:
                measures[-1] = partial(_on_device, jobs)
                locks.enter_context(locked(folder := folder_of(point)))
                one |= {
                    "backend": jobs.backend.name,
                    "jobs": n_jobs,
                    "answered_before": jobs.store_in(folder),
                }
            left += (n_circuits - one.get("answered_before", 0)) * shots
            total.used["shots"] += jobs.used["shots"]
            costs.append(one)
        forecast(costs)
        if left:
            total.check_budget(left, ConfigError)
        return exact, [(one, scored(measure)) for one, measure in zip(costs, measures, strict=True)]


def _on_device(jobs: StoredJobs, a: Tensor, circuit: Any, values: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a.double(), dim=-1, keepdim=True)
    states = (
        (a / norms.where(norms > 0, 1)).cpu().numpy()
    )  # for 0 the circuit prepares the first basis state
    angles = angles_on_inputs(states, circuit, values.double().cpu().numpy())
    angles, ansatz = angles.reshape(-1, angles.shape[-1]), circuit_on_inputs(a.shape[-1], circuit)
    parts = [jobs.run(ansatz, angles[i : i + _JOB]) for i in range(0, len(angles), _JOB)]
    return (torch.from_numpy(np.concatenate(parts)).view(a.shape).to(norms) * norms.square()).to(a)


def _simulated(
    point: BackendSettings, random: np.random.Generator, a: Tensor, circuit: Any, values: Tensor
) -> Tensor:
    squares = _squares(a.double(), circuit, values.double())
    total = squares.sum(-1, keepdim=True)  # |a|^2, which is kept classically
    p = (1 - point.noise) * squares / total.where(total > 0, 1) + point.noise / a.shape[-1]
    if point.shots is not None:
        p = torch.from_numpy(random.multinomial(point.shots, p.cpu().numpy()) / point.shots).to(p)
    return (p * total).to(a)


def _squares(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
    """As `LinearAdapter.measure`, exactly."""
    if circuit is None:
        return torch.einsum("...ij,...j->...i", values, a).square()
    return squares_behind(a.reshape(-1, a.shape[-1]), circuit, values).view(a.shape)
