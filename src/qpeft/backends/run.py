"""One circuit on one backend, as a differentiable function of its angles."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor

from qpeft.backends.backend import Numbers
from qpeft.backends.gradients import RULES, count_circuits
from qpeft.backends.jobs import Jobs
from qpeft.backends.settings import GRADIENTS
from qpeft.circuits import Ansatz
from qpeft.circuits.numerics import once_differentiable
from qpeft.errors import ConfigError, setting

_SHOTS_PER_OUTCOME = 10
_MOST_QUBITS = 14

_log = logging.getLogger("qpeft")


class CircuitRun:
    """angles `(*ansatz.angle_shape)` -> probabilities (D,) of the angles' dtype, differentiable by `gradient`.

    Args:
        ansatz: The circuit.
        jobs: The backend and the shots with which it runs.
        gradient: "adjoint", "parameter-shift", "spsa", or "auto": adjoint where the backend has it and there are no
            shots, parameter shift otherwise. The attribute `gradient` is the resolved rule.
        smoothing: Counts s added to every outcome, p = (counts + s) / (shots + s D), so that none is 0.
        allow_wide: Allow circuits of more than 14 qubits, whose outcomes no affordable number of shots resolves.
        trained: Whether the angles are trained; frozen angles need no gradient.
        n_circuits: How many circuits, each with its own angles, an optimizer step evaluates, for the counts.

    Raises:
        ConfigError: Incompatible or infeasible arguments.
    """

    def __init__(
        self,
        ansatz: Ansatz,
        jobs: Jobs,
        gradient: str = "auto",
        smoothing: float = 0.0,
        allow_wide: bool = False,
        trained: bool = True,
        n_circuits: int = 1,
    ) -> None:
        self.ansatz = ansatz
        self.jobs = jobs
        self.smoothing = smoothing
        self.trained = trained
        self.n_circuits = n_circuits
        _check_shots(jobs)
        self.gradient = _choose(gradient, jobs)
        _check_sense(ansatz, jobs, smoothing, allow_wide)
        jobs.backend.check(ansatz)
        _log.info("%s", self)

    def __call__(self, angles: Tensor) -> Tensor:
        """Probabilities (D,) at the angles."""
        return _Probabilities.apply(angles, self)

    def __str__(self) -> str:
        shots = "exact probabilities" if self.jobs.shots is None else f"{self.jobs.shots:,} shots per circuit"
        gradients = f"gradients by {self.gradient}, " if self.trained else "frozen angles, "
        per_step = f"{self.circuits_per_step:,} circuit{'s' if self.circuits_per_step > 1 else ''} per step"
        several = f"{self.n_circuits:,} circuits of " if self.n_circuits > 1 else ""
        return f"{self.jobs.backend.name}: {several}{self.ansatz.n_qubits} qubits, {shots}, {gradients}{per_step}"

    __repr__ = __str__

    @property
    def circuits_per_step(self) -> int:
        """Executions in one optimizer step: the value of every circuit, and its gradient."""
        return self.n_circuits * (1 + self.gradient_circuits)

    @property
    def gradient_circuits(self) -> int:
        """Executions for the gradient of one circuit."""
        return count_circuits(self.gradient, self.ansatz.n_angles) if self.trained else 0

    @property
    def jobs_per_step(self) -> int:
        """Jobs in one optimizer step: one for the value of every circuit, and one for its gradient."""
        return self.n_circuits * (1 + self.trained)

    def check_budget(self, steps: int) -> None:
        """Raise ConfigError if `steps` optimizer steps need more shots than the budget allows."""
        shots, budget = self.jobs.shots, self.jobs.shot_budget
        if shots is None or budget is None:
            return
        needed = steps * self.circuits_per_step * shots
        used = self.jobs.used.shots
        if used + needed > budget:
            before = f" in addition to the {used:,} already used" if used else ""
            raise ConfigError(
                f"{steps:,} steps of {self.circuits_per_step:,} circuits with {shots:,} shots need {needed:,} shots"
                f"{before}, more than the shot budget of {budget:,}; use fewer steps or shots, or a budget of at "
                f"least {used + needed:,}"
            )

    def value(self, angles: Numbers) -> Numbers:
        """Smoothed probabilities (D,) at float64 angles, without gradient."""
        return self._smooth(self.jobs.run(self.ansatz, angles[None], "value")[0])

    def gradient_at(self, angles: Numbers, weights: Numbers) -> Numbers:
        """Gradient of weights @ `value(angles)`, of the angles' shape."""
        return self._kept * RULES[self.gradient](self.jobs, self.ansatz, angles, weights)

    @property
    def _kept(self) -> float:
        """The weight of the circuit's frequency in a smoothed probability."""
        shots = self.jobs.shots
        return 1.0 if shots is None else shots / (shots + self.smoothing * 2**self.ansatz.n_qubits)

    def _smooth(self, p: Numbers) -> Numbers:
        return p * self._kept + (1 - self._kept) / p.size


class _Probabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, run: CircuitRun) -> Tensor:
        ctx.save_for_backward(angles)
        ctx.run = run
        return torch.from_numpy(run.value(_numbers(angles))).to(angles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (angles,) = ctx.saved_tensors
        found = ctx.run.gradient_at(_numbers(angles), _numbers(gradient))
        return torch.from_numpy(found).to(angles), None


def _numbers(tensor: Tensor) -> Numbers:
    return tensor.detach().double().cpu().numpy()


def _check_shots(jobs: Jobs) -> None:
    if jobs.shots is not None:
        return
    if not jobs.backend.has_exact:
        raise ConfigError(f"{jobs.backend.name} returns counts and no exact probabilities; set {setting('shots')}")
    if jobs.shot_budget is not None:
        raise ConfigError(f"{setting('shot_budget')} limits shots, but {setting('shots')} is not set; set it as well")


def _choose(gradient: str, jobs: Jobs) -> str:
    if gradient not in GRADIENTS:
        raise ConfigError(f"unknown gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}")
    has_adjoint = jobs.backend.has_adjoint and jobs.shots is None
    if gradient == "auto":
        return "adjoint" if has_adjoint else "parameter-shift"
    if gradient == "adjoint" and jobs.shots is not None:
        raise ConfigError("gradient='adjoint' needs exact probabilities; use gradient='parameter-shift' with shots")
    if gradient == "adjoint" and not has_adjoint:
        raise ConfigError(f"{jobs.backend.name} has no adjoint gradients; use gradient='parameter-shift'")
    return gradient


def _check_sense(ansatz: Ansatz, jobs: Jobs, smoothing: float, allow_wide: bool) -> None:
    if smoothing and jobs.shots is None:
        raise ConfigError(
            f"{setting('smoothing')} applies to counts, but {setting('shots')} is not set; set it as well"
        )
    outcomes = 2**ansatz.n_qubits
    if ansatz.n_qubits > _MOST_QUBITS and not (allow_wide or jobs.is_exact):
        needed = f"{_SHOTS_PER_OUTCOME * outcomes:,} shots" if jobs.shots else f"{outcomes:,} probabilities"
        raise ConfigError(
            f"{ansatz.n_qubits} qubits are too many for {jobs.backend.name}: every circuit of a step needs {needed}. "
            f"Use a larger {setting('chunk_size')} (fewer qubits), or set allow_wide=True in Python to run it anyway"
        )
    if jobs.shots is not None and jobs.shots < _SHOTS_PER_OUTCOME * outcomes:
        warnings.warn(
            f"{jobs.shots} shots for {outcomes} outcomes: sampling noise will dominate most probabilities; "
            f"use at least {_SHOTS_PER_OUTCOME * outcomes}",
            stacklevel=4,
        )
