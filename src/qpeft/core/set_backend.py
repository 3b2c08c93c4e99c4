"""Choose the source of probabilities of a model's circuits; for this process only, never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpeft.backends.jobs import RETRIES, Jobs
from qpeft.backends.named import as_backend
from qpeft.backends.run import CircuitRun
from qpeft.backends.settings import backend_settings
from qpeft.core.adapter_form import check_adapted
from qpeft.core.generator import CircuitModule
from qpeft.core.generator_holder import holder_of
from qpeft.errors import ConfigError


def set_backend(
    model: Any,
    backend: Any = "exact",
    shots: int | None = None,
    gradient: str = "auto",
    *,
    seed: int = 0,
    shot_budget: int | None = None,
    noise: float = 0.0,
    smoothing: float = 0.0,
    retries: int = RETRIES,
    log: str | Path | None = None,
    allow_wide: bool = False,
) -> CircuitRun | None:
    """Run every circuit of the model on `backend` from now on.

    Args:
        model: A PeftModel whose adapter has a circuit.
        backend: "exact", the state-vector simulator; a PennyLane device; a Qiskit sampler (`BaseSamplerV2`); a
            `qpeft.backends.Backend`; or a name of the command line, such as "pennylane:lightning.qubit".
        shots: Shots per circuit. None: exact probabilities, or the device's own shots.
        gradient: "adjoint" (exact probabilities only), "parameter-shift", "spsa", or "auto": the first of these that
            the backend supports.
        seed: For counts drawn by qpeft; devices have their own.
        shot_budget: Maximum number of shots in all jobs, repeated ones included.
        noise: Strength of simulated depolarizing noise, for simulators by name: the probability after each two-qubit
            gate, a tenth of it after each one-qubit gate.
        smoothing: Number of counts added to every outcome, so that no frequency is 0.
        retries: How often a failed job is sent again, after 1, 2, 4, ... seconds.
        log: File to which a line of JSON is added for every job.
        allow_wide: Allow more than 14 qubits.

    Returns:
        The object that runs the circuits; its `str()` shows the gradient rule and the cost of a step, and `.jobs.used`
        counts jobs, circuits, shots and seconds. None for the exact simulator with adjoint gradients.

    With shots or a device, training is noisy; the initial values of a residual adapter, merging and `qpeft.export`
    remain exact.

    Raises:
        ConfigError: the model has no adapter or no circuit, or options contradict each other.
        BackendError: later, during training: a job failed more than `retries` times, or the shot budget is used up.
    """
    backend_settings(
        {"shots": shots, "gradient": gradient, "noise": noise, "shot_budget": shot_budget, "smoothing": smoothing}
    )
    check_adapted(model)
    holder = holder_of(model)
    features = [m for m in model.modules() if isinstance(m, CircuitModule)]
    if holder is None or not features:
        raise ConfigError(
            "the model has no circuit that a backend can run; QPA has one with feature_source 'qnn' or 'qnn_frozen'"
        )
    jobs = Jobs(
        as_backend(backend, max(feature.ansatz.n_qubits for feature in features), noise),
        shots,
        seed=seed,
        shot_budget=shot_budget,
        retries=retries,
    )
    if log is not None:
        jobs.log_to(Path(log))
    runs = []
    for each in features:
        runs.append(CircuitRun(each.ansatz, jobs, gradient, smoothing, allow_wide, each.is_trained, each.n_circuits))
    is_own = jobs.is_exact and runs[0].gradient == "adjoint"
    for feature, run in zip(features, runs, strict=True):
        feature.backend = None if is_own else run
    holder.invalidate()
    return None if is_own else runs[-1]
