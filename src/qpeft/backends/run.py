"""A circuit on a backend, as a differentiable function of its angles: jobs, their cost and log,
gradients.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
import warnings
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz, Gate
from qpeft.circuits.convert import fixed_ansatz
from qpeft.circuits.numerics import refuse_second_derivative, refuse_transforms
from qpeft.errors import BackendError, CheckpointError, ConfigError
from qpeft.files import parse_json, whole_lines, write_text
from qpeft.user_code import errors_as

_SHOTS_PER_OUTCOME = 10
_MOST_QUBITS = 14  # whose outcomes an affordable number of shots resolves


class _OfProcess:
    """A copy is the same object: one device, one budget. Pickled, as by `torch.save(model)`, it is
    None: a backend belongs to a process.
    """

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()


@dataclass(eq=False)
class Jobs(_OfProcess):
    """The jobs of one training run on one backend.

    Counts depend on seed, angles and trained parameters only, so a resumed run draws the same
    counts as an uninterrupted one.
    """

    backend: Backend
    shots: int | None = None  # of each circuit; None: exact probabilities
    _: KW_ONLY
    seed: int = 0  # of simulated counts
    shot_budget: int | None = None  # of all jobs, failed ones included

    def __post_init__(self) -> None:
        # answered jobs and their circuits; shots that were sent, because the device may have run
        # them
        self.used: dict[str, float] = dict.fromkeys(("jobs", "circuits", "shots", "seconds"), 0)
        self._log: Path | None = None

    def log_to(self, path: Path) -> None:
        """Append a line of JSON for every job sent or answered; those in the file already count as
        used.

        Raises CheckpointError if the file is not a log of jobs.
        """
        path.touch()
        data = path.read_bytes()
        whole = whole_lines(data)
        try:
            for line in whole.splitlines():
                self._count(parse_json(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is not a log of jobs ({error}); move it away and run again"
            ) from error
        if whole != data:  # a kill left an incomplete line
            write_text(path, whole.decode())
        self._log = path

    def check_budget(self, shots: int, error: type[Exception]) -> None:
        """Raise the error if `shots` more are not in the budget."""
        if self.shot_budget is not None and self.used["shots"] + shots > self.shot_budget:
            raise error(
                f"{shots:,} more shots are needed, and {self.used['shots']:,} of the shot budget of"
                f" {self.shot_budget:,} are used; none of it was sent. Increase shot_budget to"
                " continue"
            )

    def run(self, ansatz: Ansatz, angles: Numbers | Tensor, state: bytes = b"") -> Any:
        """Probabilities or frequencies (B, D) at the angles `(B, *ansatz.angle_shape)`, radians.

        An array of an array; of a float64 tensor a tensor with a gradient, for backends with
        `has_backprop`. Simulated counts differ between two states, also at equal angles.

        Raises BackendError if the shot budget is used up, or the job failed, and ConfigError in
        distributed training, where a device would answer each process differently.
        """
        group = torch.distributed
        is_distributed = group.is_available() and group.is_initialized()
        if is_distributed and group.get_world_size() > 1:
            raise ConfigError(
                "distributed training runs circuits on the exact simulator only; train in one"
                " process"
            )
        began = time.perf_counter()
        shots = len(angles) * (self.shots or 0)
        self.check_budget(shots, BackendError)
        # before it is sent: its shots count even if it fails, or the process is killed while it
        # runs
        self._note("sent", shots=shots)
        try:
            if isinstance(angles, Tensor):
                answer = self.backend.differentiable(ansatz, angles)
                p = answer.detach().numpy()
            else:
                key = f"{self.seed}/{self.shots}/".encode() + np.ascontiguousarray(angles).tobytes()
                seed = int.from_bytes(hashlib.sha256(key + state).digest()[:8], "little")
                p = answer = self.backend.run(ansatz, angles, self.shots, seed)
            is_whole = p.shape == (len(angles), 2**ansatz.n_qubits)
            if not (is_whole and (p > -1e-9).all() and (abs(p.sum(axis=1) - 1) < 1e-3).all()):
                raise RuntimeError(
                    f"{self.backend.name} returned {p.shape} values that are not probabilities"
                )
        except ConfigError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BackendError(
                f"a job on {self.backend.name} failed: {reason}. Checkpoints are intact: resume"
                " when the device answers"
            ) from error
        self._note("answered", jobs=1, circuits=len(angles), seconds=time.perf_counter() - began)
        return answer

    def _note(self, event: str, **costs: Any) -> None:
        entry = {"event": event, **dict.fromkeys(self.used, 0), **costs}
        self._count(entry)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _count(self, entry: dict[str, Any]) -> None:
        for name in self.used:
            self.used[name] += entry[name]


@dataclass(eq=False, repr=False)
class CircuitRun(_OfProcess):
    """angles `(*ansatz.angle_shape)` -> probabilities (D,) of the angles' dtype, with a gradient.

    The gradient is by backpropagation without shots on a simulator that has it, otherwise by
    parameter shift. Then a circuit of which angles turn several gates, or a multiple of the angle,
    runs as the one in which each gate has an angle of its own, theta_g = scale_g angle + shift_g:

        d p / d angle = sum_g scale_g d p / d theta_g

    Raises ConfigError for incompatible or infeasible options.
    """

    ansatz: Ansatz
    jobs: Jobs
    trained: bool = True  # frozen angles need no gradient
    n_circuits: int = 1  # that an optimizer step evaluates, each with its own angles
    # of the generator: frozen angles, too, get other counts when something else was trained
    state: bytes = b""

    def __post_init__(self) -> None:
        ansatz = self.ansatz
        backend = self.jobs.backend
        shots = self.jobs.shots
        is_exact = shots is None
        has_backprop = is_exact and backend.has_backprop
        self.gradient = "backpropagation" if has_backprop else "parameter shift"
        self._shifts = self.trained and not has_backprop
        self._splits = self._shifts and not ansatz.has_shift_rule
        self._circuit = _with_own_angles(ansatz) if self._splits else ansatz
        for is_wrong, why in (
            (is_exact and not backend.has_exact, "it returns counts; set shots"),
            (is_exact and self.jobs.shot_budget, "a shot_budget needs shots; set shots"),
            (
                not is_exact and ansatz.n_qubits > _MOST_QUBITS,
                f"shots are for at most {_MOST_QUBITS} qubits",
            ),
        ):
            if is_wrong:
                raise ConfigError(
                    f"{backend.name} cannot run {ansatz.name} with {ansatz.n_qubits} qubits: {why}"
                )
        enough = _SHOTS_PER_OUTCOME * 2**ansatz.n_qubits
        if shots is not None and shots < enough:
            message = (
                f"{shots} shots are few for {ansatz.n_qubits} qubits, and noise will dominate; use"
                f" {enough} or more"
            )
            warnings.warn(message, stacklevel=4)
        with errors_as(f"{backend.name} cannot run {ansatz.name}:"):
            backend.check(self._circuit, shots)

    def __call__(self, angles: Tensor) -> Tensor:
        """Probabilities (D,) at the angles."""
        if self.trained and not self._shifts and torch.is_grad_enabled():
            (p,) = self.jobs.run(self.ansatz, angles.cpu().double()[None])
            return p.to(angles)
        if self._splits:  # the chain rule is autograd's
            angles = torch.stack(
                [
                    gate.scale * angles[gate.slot] + gate.shift
                    for gate in self.ansatz.gates()
                    if gate.slot is not None
                ]
            )  # (gates with an angle,)
        refuse_transforms()
        return _Probabilities.apply(angles, self)

    def __repr__(self) -> str:
        shots = (
            "exact probabilities"
            if self.jobs.shots is None
            else f"{self.jobs.shots:,} shots per circuit"
        )
        gradients = f"gradients by {self.gradient}" if self.trained else "frozen angles"
        facts = shots, gradients, f"circuits per step: {self.circuits_per_step:,}"
        return f"{self.jobs.backend.name}: {self.ansatz.n_qubits} qubits, {', '.join(facts)}"

    @property
    def circuits_per_step(self) -> int:
        """Executions in one optimizer step: the value of every circuit, and by parameter shift two
        for each angle, or for each gate with an angle where angles turn several gates.
        """
        return self.n_circuits * (1 + 2 * self._circuit.n_angles * self._shifts)

    def forecast(self, steps: int) -> dict[str, Any]:
        """Circuits, jobs and shots of `steps` optimizer steps; nothing is sent.

        Raises ConfigError if the shot budget does not suffice.
        """
        circuits = steps * self.circuits_per_step
        shots = circuits * (self.jobs.shots or 0)
        self.jobs.check_budget(shots, ConfigError)
        settings = {"backend": self.jobs.backend.name, "shots_per_circuit": self.jobs.shots}
        per_step = {
            "circuits_per_step": self.circuits_per_step,
            "jobs_per_step": self.n_circuits * (1 + self._shifts),
        }
        return {**settings, **per_step, "steps": steps, "circuits": circuits, "shots": shots}


def _with_own_angles(ansatz: Ansatz) -> Ansatz:
    """The circuit in which each gate with an angle turns by one of its own: angles (gates,)."""
    slots = itertools.count()
    gates = [
        gate if gate.slot is None else Gate(gate.name, gate.wires, (next(slots),))
        for gate in ansatz.gates()
    ]
    return fixed_ansatz(ansatz.name, ansatz.n_qubits, (next(slots),), gates)


class _Probabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, run: CircuitRun) -> Tensor:
        ctx.save_for_backward(angles)
        ctx.run = run
        ctx.jacobian = None
        (p,) = run.jobs.run(run._circuit, angles.detach().cpu().double().numpy()[None], run.state)
        return torch.from_numpy(p).to(angles)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """By parameter shift: 1/2 sum_i w_i (p_i(theta + pi/2 e_k) - p_i(theta - pi/2 e_k)), in one
        job of 2P circuits.

        Exact for exact probabilities, unbiased for frequencies.
        """
        refuse_second_derivative()
        (angles,) = ctx.saved_tensors
        if ctx.jacobian is None:  # later micro-batches of the step need no circuits
            ctx.jacobian = _by_parameter_shift(angles, ctx.run)
        weights = gradient.detach().cpu().double()  # (D,)
        return (ctx.jacobian @ weights).view(angles.shape).to(angles), None


def _by_parameter_shift(angles: Tensor, run: CircuitRun) -> Tensor:
    """The derivative of each probability by each angle, (P, D) in float64 on the CPU."""
    theta = angles.detach().cpu().double()
    eye = torch.eye(theta.numel(), dtype=theta.dtype).view(-1, *theta.shape)  # (P, *shape)
    shifts = math.pi / 2 * eye
    shifted = torch.cat([theta + shifts, theta - shifts])  # (2P, *shape)
    p = torch.from_numpy(run.jobs.run(run._circuit, shifted.numpy(), run.state))  # (2P, D)
    plus, minus = p.chunk(2)
    return 0.5 * (plus - minus)
