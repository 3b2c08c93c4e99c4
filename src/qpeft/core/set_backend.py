"""Choose the source of probabilities of a model's circuits; for this process only, never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qpeft.backends import BackendSettings, CircuitRun, Jobs, as_backend
from qpeft.core.generator import CircuitModule, circuits_in
from qpeft.core.generator_holder import holder_of
from qpeft.core.meta_model import peft_model_of
from qpeft.errors import ConfigError


def set_backend(
    model: Any,
    backend: Any = "exact",
    shots: int | None = None,
    *,
    seed: int = 0,
    shot_budget: int | None = None,
    noise: float = 0.0,
    log: str | Path | None = None,
) -> CircuitRun | None:
    """Run every circuit of the model on `backend` from now on, also those of adapters that are added
    or loaded later.

    Args:
        model: A PeftModel whose adapter has a circuit.
        backend: "exact", the state-vector simulator; a PennyLane device; a Qiskit sampler
            (`BaseSamplerV2`); a `qpeft.backends.Backend`; or a name of the command line, such as
            "pennylane:lightning.qubit".
        shots: Shots per circuit, of at most 14 qubits. None: exact probabilities, where the backend
            has them.
        seed: For counts drawn by qpeft; devices have their own.
        shot_budget: Maximum number of shots in all jobs, failed ones included.
        noise: Strength of simulated depolarizing noise, for "pennylane:default.mixed": the
            probability after each two-qubit gate, a tenth of it after each one-qubit gate.
        log: File to which a line of JSON is added for every job.

    Returns:
        The object that runs the circuits, with gradients by backpropagation on simulators of
        PennyLane that have it, without shots, otherwise by parameter shift; its `str()` shows the
        cost of a step, and `.jobs.used` counts jobs, circuits, shots and seconds. None for the
        exact simulator.

    With shots or a device, training is noisy; the initial values of a residual adapter, merging and
    `qpeft.export` remain exact.

    Raises:
        ConfigError: the model has no adapter or no circuit, or options contradict each other.
        BackendError: later, during training: a job failed, or the shot budget is used up.
    """
    chosen = BackendSettings(backend=backend, shots=shots, noise=noise, shot_budget=shot_budget)
    model = peft_model_of(model)
    holder: Any = holder_of(model)
    runs = circuit_runs(holder, chosen, seed, log)
    holder.run_on(runs)
    run = [*runs.values()][-1]
    holder.backend_jobs = None if run is None else run.jobs
    return run


def circuit_runs(
    generators: nn.Module | None,
    chosen: BackendSettings,
    seed: int = 0,
    log: str | Path | None = None,
) -> dict[CircuitModule, CircuitRun | None]:
    """What runs each circuit of these generators on the backend, as one budget; None for the exact
    simulator.

    Raises ConfigError if there is no circuit, or options contradict each other.
    """
    circuits = [] if generators is None else circuits_in(generators)
    if not circuits:
        raise ConfigError(
            "there is no circuit that a backend can run in training; QPA has one with"
            " feature_source qnn, qnn_frozen. Circuits on inputs are measured by qpeft evaluate"
        )
    if chosen == BackendSettings():
        return dict.fromkeys(circuits)
    device = as_backend(
        chosen.backend, max(each.ansatz.n_qubits for each in circuits), chosen.noise
    )
    jobs = Jobs(device, chosen.shots, seed=seed, shot_budget=chosen.shot_budget)
    if log is not None:
        jobs.log_to(Path(log))
    return {each: each.run_on(jobs) for each in circuits}
