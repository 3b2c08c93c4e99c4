"""Scores of adapters whose circuits on inputs, of QAA and CUA, are measured: with simulated shots, or on a device.

    exact score, which counts the circuits --> forecast, refused above the budget --> score with measured circuits

A device's answers are kept in files, under a hash of their job, so that the same evaluation sends only what is missing.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from qpeft.backends import BackendSettings, CircuitRun, Jobs, as_backend
from qpeft.backends.backend import Numbers
from qpeft.circuits import Ansatz
from qpeft.circuits.amplitude import squares_behind
from qpeft.core.linear_tuner import LinearAdapter
from qpeft.errors import ConfigError
from qpeft.files import replace_file
from qpeft_lab.files import locked
from qpeft_lab.training.input_circuits import angles_on_inputs, circuit_on_inputs
from qpeft_lab.training.score import Score

_JOB = 256  # circuits at most


class StoredJobs(Jobs):
    """The jobs of one evaluation, of which each answer is a file in the folder of `store_in`."""

    def store_in(self, folder: Path) -> None:
        """Keep log and answers in this folder, and take the answers that it has."""
        self.log_to(folder / "jobs.jsonl")
        self._folder, self._seen = folder, Counter[str]()

    def run(self, ansatz: Ansatz, angles: Numbers) -> Numbers:
        content = f"{ansatz.name}/{self.shots}/{self.seed}/".encode() + angles.tobytes()
        self._seen[key := hashlib.sha256(content).hexdigest()] += 1
        path = self._folder / f"{key[:32]}-{self._seen[key]}.safetensors"  # equal jobs have answers of their own
        if not path.exists():
            found = super().run(ansatz, angles)
            with replace_file(path) as temporary:
                save_file({"p": np.ascontiguousarray(found)}, temporary)
        return load_file(path)["p"]


def measured_scores(
    model: Any,
    score: Callable[[], Score],
    chosen: BackendSettings,
    seed: int = 0,
    forecast: Callable[[dict[str, Any]], None] = lambda costs: None,
    folder: Path = Path(),
) -> tuple[dict[str, Any], dict[str, Score]]:
    """The score `adapted` with exact probabilities P, and `measured` with counts of the backend.

    The backend exact counts (1 - noise) P + noise / 2**q; without shots it does not sample. The jobs and answers of
    another one are in `folder`, which belongs to this evaluation. The circuits and shots of `measured`, which are
    returned first, are passed to `forecast` before they are run.

    Raises ConfigError if the model has other adapters, or the shot budget does not suffice, or the backend cannot run
    them; nothing is sent then. Raises BackendError if a job failed: what is answered is kept.
    """
    adapters = [module for module in model.modules() if isinstance(module, LinearAdapter)]
    if not adapters or not all(adapter.n_qubits for adapter in adapters):
        raise ConfigError(
            "this adapter has no circuits that are measured at inference. QAA has them with feature_source qnn, CUA "
            "with readout magnitude and blocks of 2**q values: no measurement gives the signs of readout linear"
        )
    random, n_circuits, n_jobs, is_simulated = np.random.default_rng(seed), 0, 0, chosen.backend == "exact"
    widest, noise = max(adapter.n_qubits for adapter in adapters), 0.0 if is_simulated else chosen.noise
    device, checked = as_backend(chosen.backend, widest, noise), set[Ansatz]()
    jobs = StoredJobs(device, chosen.shots, seed=seed, shot_budget=chosen.shot_budget)

    def counted(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        nonlocal n_circuits, n_jobs
        n_circuits, n_jobs = n_circuits + (n := a[..., 0].numel()), n_jobs - (-n // _JOB)
        if not is_simulated and (ansatz := circuit_on_inputs(a.shape[-1], circuit)) not in checked:
            with warnings.catch_warnings(action="ignore"):  # of few shots for 2**q probabilities; QAA reads q numbers
                CircuitRun(ansatz, jobs, trained=False)  # raises ConfigError if it cannot run
            checked.add(ansatz)
        return _squares(a, circuit, values)

    def on_device(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(a.double(), dim=-1, keepdim=True)
        states = (a / norms.where(norms > 0, 1)).cpu().numpy()  # for 0 the circuit prepares the first basis state
        angles = angles_on_inputs(states, circuit, values.double().cpu().numpy())
        angles, ansatz = angles.reshape(-1, angles.shape[-1]), circuit_on_inputs(a.shape[-1], circuit)
        parts = [jobs.run(ansatz, angles[i : i + _JOB]) for i in range(0, len(angles), _JOB)]
        return (torch.from_numpy(np.concatenate(parts)).view(a.shape).to(norms) * norms.square()).to(a)

    def measured(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        squares = _squares(a.double(), circuit, values.double())
        total = squares.sum(-1, keepdim=True)  # |a|^2, which is kept classically
        p = (1 - chosen.noise) * squares / total.where(total > 0, 1) + chosen.noise / a.shape[-1]
        if chosen.shots is not None:
            p = torch.from_numpy(random.multinomial(chosen.shots, p.cpu().numpy()) / chosen.shots).to(p)
        return (p * total).to(a)

    def scored(measure: Callable[[Tensor, Any, Tensor], Tensor]) -> Score:
        for adapter in adapters:
            adapter.measure = measure
        try:
            return score()
        finally:
            for adapter in adapters:
                adapter.measure = None

    exact, shots = scored(counted), chosen.shots or 0
    costs = {"noise": chosen.noise, "shots_per_circuit": shots, "circuits": n_circuits, "shots": n_circuits * shots}
    if is_simulated:
        forecast(costs)
        jobs.check_budget(costs["shots"], ConfigError)
        return costs, {"adapted": exact, "measured": scored(measured)}
    with locked(folder):
        jobs.store_in(folder)
        costs |= {"backend": device.name, "jobs": n_jobs, "answered_before": int(jobs.used["circuits"])}
        forecast(costs)
        jobs.check_budget((n_circuits - costs["answered_before"]) * shots, ConfigError)
        return costs, {"adapted": exact, "measured": scored(on_device)}


def _squares(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
    """As `LinearAdapter.measure`, exactly."""
    if circuit is None:
        return torch.einsum("...ij,...j->...i", values, a).square()
    return squares_behind(a.reshape(-1, a.shape[-1]), circuit, values).view(a.shape)
