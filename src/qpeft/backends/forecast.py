"""The cost of a training run's circuits on a backend: counted, and timed on a small sample."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qpeft.backends.backend import Numbers
from qpeft.backends.run import CircuitRun

_SAMPLE = 9  # circuits of the second timed job; the first has one


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Circuits, shots and seconds of a training run's circuits; other computation is not included."""

    backend: str
    gradient: str
    n_qubits: int
    shots_per_circuit: int | None
    circuits_per_step: int
    jobs_per_step: int
    steps: int
    circuits: int
    shots: int
    sample: int  # circuits that were run for the measurement
    seconds_per_step: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(run: CircuitRun, steps: int) -> Forecast:
    """The cost of `steps` optimizer steps of `run`.

    Sends small jobs at random angles: a warm-up (a device compiles the circuit), one circuit, and nine circuits, or the
    adjoint pass where it computes the gradients. The model of a job's duration is a + b n seconds for n circuits; a
    queue in front of the device contributes to a.

    Raises BackendError if the device does not answer.
    """
    random = np.random.Generator(np.random.Philox(0))
    angles = random.uniform(-np.pi, np.pi, (_SAMPLE, *run.ansatz.angle_shape))
    run.jobs.run(run.ansatz, angles[:1], "forecast")
    one = _seconds(run, angles[:1] + 0.1)
    per_step = run.n_circuits * (one + (_gradient_seconds(run, angles, one) if run.trained else 0.0))
    circuits = steps * run.circuits_per_step
    shots = run.jobs.shots or 0
    return Forecast(
        backend=run.jobs.backend.name,
        gradient=run.gradient,
        n_qubits=run.ansatz.n_qubits,
        shots_per_circuit=run.jobs.shots,
        circuits_per_step=run.circuits_per_step,
        jobs_per_step=run.jobs_per_step,
        steps=steps,
        circuits=circuits,
        shots=circuits * shots,
        sample=run.jobs.used.circuits,
        seconds_per_step=per_step,
        seconds=per_step * steps,
    )


def _gradient_seconds(run: CircuitRun, angles: Numbers, one: float) -> float:
    """Seconds of the job of one circuit's gradient; `one`: seconds of a job of one circuit."""
    if run.gradient == "adjoint":
        weights = np.linspace(-1.0, 1.0, 2**run.ansatz.n_qubits)
        run.gradient_at(angles[0], weights)
        began = time.perf_counter()
        run.gradient_at(angles[1], weights)
        return time.perf_counter() - began
    each = max(0.0, (_seconds(run, angles) - one) / (_SAMPLE - 1))
    return max(0.0, one - each) + run.gradient_circuits * each


def _seconds(run: CircuitRun, angles: Numbers) -> float:
    began = time.perf_counter()
    run.jobs.run(run.ansatz, angles, "forecast")
    return time.perf_counter() - began
