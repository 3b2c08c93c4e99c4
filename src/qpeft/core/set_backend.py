"""Choose the source of probabilities of a model's circuits; for this process only, never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpeft.backends import BackendSettings, CircuitRun, Jobs, as_backend
from qpeft.core.adapter_form import check_adapted
from qpeft.core.generator import CircuitModule
from qpeft.core.tuner import holder_of
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
    """Run every circuit of the model on `backend` from now on.

    Args:
        model: A PeftModel whose adapter has a circuit.
        backend: "exact", the state-vector simulator; a PennyLane device; a Qiskit sampler (`BaseSamplerV2`); a
            `qpeft.backends.Backend`; or a name of the command line, such as "pennylane:lightning.qubit".
        shots: Shots per circuit, of at most 14 qubits. None: exact probabilities, where the backend has them.
        seed: For counts drawn by qpeft; devices have their own.
        shot_budget: Maximum number of shots in all jobs, failed ones included.
        noise: Strength of simulated depolarizing noise, for "pennylane:default.mixed": the probability after each
            two-qubit gate, a tenth of it after each one-qubit gate.
        log: File to which a line of JSON is added for every job.

    Returns:
        The object that runs the circuits; its `str()` shows the gradient rule and the cost of a step, and `.jobs.used`
        counts jobs, circuits, shots and seconds. None for the exact simulator with adjoint gradients.

    With shots or a device, training is noisy; the initial values of a residual adapter, merging and `qpeft.export`
    remain exact.

    Raises:
        ConfigError: the model has no adapter or no circuit, or options contradict each other.
        BackendError: later, during training: a job failed, or the shot budget is used up.
    """
    chosen = BackendSettings(backend=backend, shots=shots, noise=noise, shot_budget=shot_budget)
    check_adapted(model)
    holder = holder_of(model)
    features = [m for m in model.modules() if isinstance(m, CircuitModule)]
    if holder is None or not features:
        raise ConfigError(
            "the model has no circuit that a backend can run; QPA has one with feature_source 'qnn' or 'qnn_frozen'"
        )
    runs: list[CircuitRun | None] = [None] * len(features)
    if chosen != BackendSettings():
        device = as_backend(backend, max(feature.ansatz.n_qubits for feature in features), noise)
        jobs = Jobs(device, shots, seed=seed, shot_budget=shot_budget)
        if log is not None:
            jobs.log_to(Path(log))
        runs = [CircuitRun(each.ansatz, jobs, each.is_trained, each.n_circuits) for each in features]
    holder.run_on(dict(zip(features, runs, strict=True)))
    return runs[-1]
