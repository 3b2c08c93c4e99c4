"""The plan of a study that fits into so many minutes, and what it could detect."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qpeft.errors import ConfigError
from qpeft.files import read_json
from qpeft_lab.compare.cell import read_data, test_settings_of
from qpeft_lab.compare.forecast import Speed, speed_of
from qpeft_lab.compare.paired import Paired
from qpeft_lab.compare.plan import Plan, count, host_of, make_plan
from qpeft_lab.compare.rows import read_rows
from qpeft_lab.compare.study import STUDY, Method, Study
from qpeft_lab.demo import base_model
from qpeft_lab.method_records import UNTRAINED
from qpeft_lab.verdict import PROTOCOL
from qpeft_lab.verdict.circuit import OWN_FILE, Circuit
from qpeft_lab.verdict.protocol import (
    CIRCUIT,
    HOST,
    UNIT,
    UNIT_METHOD,
    Protocol,
    name_at,
    protocol_of,
    read_protocol,
    study_of,
)

EVALUATIONS = 3  # of the validation data in a run: before, half-way, and after
VALIDATION_BLOCKS = 96
TEST_BLOCKS = 192
_PROCESS = 3.0  # seconds that a run needs besides: its process, its files
_EXTENSIONS = 0.5  # further learning rates of an adapter, on average
# Standard deviation over seeds of a difference from a twin, per cent of LoRA's gain, times the square
# root of the steps. On the embedded base and its text it is 43 and 49 in the study `margins` (277
# steps), and 43 and 60 in results/verdicts/hardware_efficient.json (30 steps). It is larger if some
# seeds do not improve on the base at the rate of their search, as in results/verdicts/qaoa.json.
SPREAD = 46.0


class Size(NamedTuple):
    """Seeds and steps of a study."""

    n_seeds: int
    steps: int


# The best first. After an epoch with ten seeds a difference of 0 is shown to be within the margin in
# nine of ten studies (evidence/verdict_power.py), with five in seven of ten.
SIZES = [
    *(Size(10, steps) for steps in (400, 200, 100, 60)),
    *(Size(5, steps) for steps in (100, 60)),
    *(Size(3, steps) for steps in (60, 30)),
]


def _minutes(speed: Speed, size: Size, n_adapters: int, n_rates: int, workers: int) -> float:
    """What a study with so many adapters and learning rates takes."""
    n_trials = n_adapters * (n_rates + _EXTENSIONS)
    n_runs = n_adapters * size.n_seeds
    start = _PROCESS + speed.start
    training = start + size.steps * speed.step + EVALUATIONS * VALIDATION_BLOCKS * speed.example
    seconds = (n_trials + n_runs) * training + n_runs * TEST_BLOCKS * speed.example
    return seconds / workers / 60


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        circuit: The circuit.
        method: One whose record has controls.
        n_layers: Of the circuit.
        run: Base, data and training, as in a study.
        margin: Per cent of the gain of LoRA r=8.
        n_seeds: Or None, for as many as fit.
        workers: Runs in parallel.
        angle_scale: On the learning rate of the angles, or None for the method's.
    """

    circuit: Circuit
    method: str
    n_layers: int | None
    run: Mapping[str, Any]
    margin: float
    n_seeds: int | None
    workers: int
    angle_scale: float | None = None

    def study(self, size: Size) -> Study:
        """The study of this size. Raises ConfigError if it cannot run."""
        run = {**self.run, "steps": size.steps, "eval_blocks": VALIDATION_BLOCKS}
        run["eval_every"] = max(1, size.steps // (EVALUATIONS - 1))
        fixed = self.circuit.fixed is not None
        n_generated = self._n_generated(run) if fixed else 0
        fields = study_of(
            self.circuit,
            self.method,
            self.n_layers,
            n_generated,
            run,
            range(size.n_seeds),
            self.angle_scale,
        )
        fields |= {"name": name_at(self.margin), "test_blocks": TEST_BLOCKS}
        study = Study.model_validate(fields)
        study.check()
        return study

    def _n_generated(self, run: Mapping[str, Any]) -> int:
        """Parameters of the LoRA that the circuit generates."""
        host = Method(key=UNIT, method=UNIT_METHOD, settings=HOST)
        fields = {"name": "size", "title": "", "question": "", "reference": UNIT}
        study = Study.model_validate({**fields, "run": dict(run), "methods": [host]})
        base = host_of(study, base_model(study.run.model), trust_remote_code=False)
        return count(study, base, host, HOST)[1]


class Forecast(NamedTuple):
    """The largest study that fits, the minutes that it takes, and those of the shortest study that
    can detect the margin, or None.
    """

    size: Size
    minutes: float
    deciding: float | None


class Planned(NamedTuple):
    """A study, what is fixed before its first row, the difference that it can detect, per cent of
    the unit, and how long it takes (None if it has begun).
    """

    plan: Plan
    protocol: Protocol
    detectable: float
    forecast: Forecast | None


def planned(request: Request, folder: Path, minutes: float, command: str) -> Planned:
    """The study in `folder`, which resumes if it has begun.

    Raises ConfigError if the smallest study takes longer than `minutes`, or the folder has rows of
    another study.
    """
    forecast = None
    if (folder / PROTOCOL).exists():
        begun = read_protocol(folder)
        size = Size(request.n_seeds or len(begun.seeds), request.run.get("steps") or begun.steps)
    else:
        forecast = _forecast(request, minutes)
        size = forecast.size
    study = request.study(size)
    protocol = protocol_of(study, request.margin)
    plan = make_plan(study, folder, command, own_files=(OWN_FILE, PROTOCOL))
    _refuse_another_study(plan, folder)
    if forecast is not None:
        _refuse_one_block(plan)
    return Planned(plan, protocol, detectable(size, len(protocol.others)), forecast)


def _refuse_another_study(plan: Plan, folder: Path) -> None:
    """Raise ConfigError if the folder has rows, and what they depend on has changed."""
    file = folder / STUDY
    if not file.exists() or not read_rows(folder):
        return
    fixed = {method["key"]: method["hash"] for method in read_json(file)["methods"]}
    changed = [each.label for each in plan.study.methods if fixed.get(each.key) != each.hash]
    if changed:
        raise ConfigError(
            f"{folder} has rows of another study: the circuit, an option, the base or the data has"
            f" changed since, for {', '.join(changed)}. Name another --out for another study"
        )


def _refuse_one_block(plan: Plan) -> None:
    """Raise ConfigError if the test data are too short for an interval."""
    n_blocks = len(read_data(test_settings_of(plan.cells({})[0])).evaluation)
    if n_blocks < 2:
        raise ConfigError(
            f"the test data, a part of --data, have {n_blocks} block of {plan.study.run.seq_len}"
            " tokens, and a decision needs two or more; give more --data, or a smaller --seq-len"
        )


def detectable(size: Size, n_questions: int) -> float:
    """The difference that a study can detect if seeds vary as on the embedded base, per cent of the
    unit.
    """
    error = SPREAD / math.sqrt(size.steps * size.n_seeds)
    return Paired(0.0, error, size.n_seeds - 1).detectable(n_questions)


def _forecast(request: Request, minutes: float) -> Forecast:
    """Of the largest study within `minutes`."""
    pilot = request.study(SIZES[-1])  # a step takes as long in each size
    with tempfile.TemporaryDirectory() as folder:
        speed = speed_of(make_plan(pilot, Path(folder) / "pilot"), CIRCUIT)
    n_trained = sum(method.method != UNTRAINED for method in pilot.methods)
    n_rates = len(pilot.tuning.grid)
    n_questions = sum(bool(method.against or method.at_size_of) for method in pilot.methods)
    minutes_of = {
        size: _minutes(speed, size, n_trained, n_rates, request.workers) for size in _sizes(request)
    }
    deciding = [
        needed
        for size, needed in minutes_of.items()
        if detectable(size, n_questions) <= request.margin
    ]
    for size, needed in minutes_of.items():
        if needed <= minutes:
            return Forecast(size, needed, min(deciding, default=None))
    shortest = math.ceil(min(minutes_of.values()))
    raise ConfigError(
        f"the smallest study takes about {shortest} minutes here; give --minutes {shortest} or"
        " more, more --workers, or a smaller --model"
    )


def _sizes(request: Request) -> list[Size]:
    """Those to choose from, the best first, with the seeds and steps that the user gave."""
    steps = request.run.get("steps")
    sizes = [Size(request.n_seeds or size.n_seeds, steps or size.steps) for size in SIZES]
    return list(dict.fromkeys(sizes))
