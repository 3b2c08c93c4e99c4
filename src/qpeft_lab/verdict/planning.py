"""The plan of a study that fits into so many minutes, and what it could detect."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qpeft.errors import ConfigError
from qpeft_lab.compare.cell import run_cell
from qpeft_lab.compare.paired import Paired
from qpeft_lab.compare.plan import Plan, count, host_of, make_plan
from qpeft_lab.compare.study import Method, Study
from qpeft_lab.demo import base_model
from qpeft_lab.verdict.circuit import OWN_FILE, Circuit
from qpeft_lab.verdict.protocol import (
    CIRCUIT,
    HOST,
    PROTOCOL,
    UNIT,
    UNIT_METHOD,
    Protocol,
    protocol_of,
    read_protocol,
    study_of,
)

PILOT_STEPS = 7
PILOT_BLOCKS = 16
EVALUATIONS = 3  # of the validation data in a run: before, half-way, and after
VALIDATION_BLOCKS = 96
TEST_BLOCKS = 192
_PROCESS = 3.0  # seconds that a run needs besides: its process, its model, its files
_EXTENSIONS = 0.5  # further learning rates of an adapter, on average
# Standard deviation over seeds of a difference from a twin, per cent of LoRA's gain: the median of
# the study `margins`, in which it is from 0.3 to 3.
SPREAD = 1.4


class Size(NamedTuple):
    """Seeds and steps of a study."""

    n_seeds: int
    steps: int


# The best first. With ten seeds a difference of 0 is shown to be within the margin in nine of ten
# studies (evidence/verdict_power.py), with five in seven of ten.
SIZES = [
    *(Size(10, steps) for steps in (400, 200, 100, 60)),
    *(Size(5, steps) for steps in (100, 60)),
    *(Size(3, steps) for steps in (60, 30)),
]


class Speed(NamedTuple):
    """Seconds of a training step, and of the evaluation of a block."""

    step: float
    block: float

    def minutes(self, size: Size, n_adapters: int, n_rates: int, workers: int) -> float:
        """Of a study with so many adapters and learning rates."""
        n_trials = n_adapters * (n_rates + _EXTENSIONS)
        n_runs = n_adapters * size.n_seeds
        training = _PROCESS + size.steps * self.step + EVALUATIONS * VALIDATION_BLOCKS * self.block
        seconds = (n_trials + n_runs) * training + n_runs * TEST_BLOCKS * self.block
        return seconds / workers / 60


def measure(pilot: Plan) -> Speed:
    """The speed of the circuit's adapter in a plan of PILOT_STEPS steps, with an evaluation of
    PILOT_BLOCKS blocks after every third.

    The first evaluation and the first steps prepare what later ones reuse, and are left out.
    """
    cell = next(cell for cell in pilot.tuning_cells({}) if cell.method == CIRCUIT)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the runs of the study
    try:
        with tempfile.TemporaryDirectory() as folder:
            curve = run_cell(cell, Path(folder))["curve"]
    finally:
        torch.set_num_threads(n_threads)
    seconds = [point[2] for point in curve]  # behind steps 0, 3, 6 and 7
    three_steps = seconds[2] - seconds[1]  # and an evaluation
    one_step = seconds[3] - seconds[2]  # and an evaluation
    step = max(three_steps - one_step, 0.0) / 2
    evaluation = max(one_step - step, 0.0)
    return Speed(step, evaluation / PILOT_BLOCKS)


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        circuit: The circuit.
        method: `qpa` or `quantum_peft`.
        n_layers: Of the circuit.
        run: Base, data and training, as in a study.
        margin: Per cent of the gain of LoRA r=8.
        n_seeds: Or None, for as many as fit.
        workers: Runs in parallel.
    """

    circuit: Circuit
    method: str
    n_layers: int | None
    run: Mapping[str, Any]
    margin: float
    n_seeds: int | None
    workers: int

    def study(self, size: Size) -> Study:
        """The study of this size. Raises ConfigError if it cannot run."""
        run = {**self.run, "steps": size.steps, "eval_blocks": VALIDATION_BLOCKS}
        run["eval_every"] = max(1, size.steps // (EVALUATIONS - 1))
        fixed = self.circuit.fixed is not None
        n_generated = self._n_generated(run) if fixed else 0
        fields = study_of(
            self.circuit, self.method, self.n_layers, n_generated, run, range(size.n_seeds)
        )
        study = Study.model_validate({**fields, "test_blocks": TEST_BLOCKS})
        study.check()
        return study

    def _n_generated(self, run: Mapping[str, Any]) -> int:
        """Parameters of the LoRA that the circuit generates."""
        host = Method(key=UNIT, method=UNIT_METHOD, settings=HOST)
        fields = {"name": "size", "title": "", "question": "", "reference": UNIT}
        study = Study.model_validate({**fields, "run": dict(run), "methods": [host]})
        base = host_of(study, base_model(study.run.model), trust_remote_code=False)
        return count(study, base, host, HOST)[1]


class Planned(NamedTuple):
    """A study, what is fixed before its first row, the minutes that it takes (None if it has
    begun), and the difference that it can detect, per cent of the unit.
    """

    plan: Plan
    protocol: Protocol
    minutes: float | None
    detectable: float


def planned(request: Request, folder: Path, minutes: float, command: str) -> Planned:
    """The study in `folder`, which resumes if it has begun.

    Raises ConfigError if the smallest study takes longer than `minutes`.
    """
    needed = None
    if (folder / PROTOCOL).exists():
        begun = read_protocol(folder)
        size = Size(request.n_seeds or len(begun.seeds), request.run.get("steps") or begun.steps)
    else:
        size, needed = _fitting(request, minutes)
    study = request.study(size)
    protocol = protocol_of(study, request.circuit, request.margin)
    plan = make_plan(study, folder, command, own_files=(OWN_FILE, PROTOCOL))
    # if seeds vary as they usually do
    expected = Paired(0.0, SPREAD / math.sqrt(size.n_seeds), size.n_seeds - 1)
    return Planned(plan, protocol, needed, expected.detectable(len(protocol.others)))


def _fitting(request: Request, minutes: float) -> tuple[Size, float]:
    """The size of the largest study within `minutes`, and the minutes that it takes."""
    pilot = request.study(Size(n_seeds=3, steps=PILOT_STEPS))
    run = replace(pilot.run, eval_every=3, eval_blocks=PILOT_BLOCKS, save_every=PILOT_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        speed = measure(make_plan(pilot.model_copy(update={"run": run}), Path(folder) / "pilot"))
    trained = [method for method in pilot.methods if method.method != "none"]
    n_rates = len(pilot.tuning.grid)
    needed = math.inf
    for size in _sizes(request):
        needed = speed.minutes(size, len(trained), n_rates, request.workers)
        if needed <= minutes:
            return size, needed
    raise ConfigError(
        f"the smallest study takes about {math.ceil(needed)} minutes here; give --minutes"
        f" {math.ceil(needed)} or more, more --workers, or a smaller --model"
    )


def _sizes(request: Request) -> list[Size]:
    """Those to choose from, the best first, with the seeds and steps that the user gave."""
    steps = request.run.get("steps")
    sizes = [Size(request.n_seeds or size.n_seeds, steps or size.steps) for size in SIZES]
    return list(dict.fromkeys(sizes))
