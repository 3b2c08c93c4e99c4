"""Writes the evidence of `qpeft.suggest`, src/qpeft/methods/evidence.json, from published results.

    python benchmarks/evidence.py

The results are the study `budgets` in results/budgets. Left out are designs without an adapter, and those that
are missing in a setup or failed with a seed.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student

from qpeft import methods
from qpeft.files import write_json
from qpeft.methods import Trains
from qpeft_lab.compare.rows import Row, succeeded
from qpeft_lab.compare.study import Method, load_study
from qpeft_lab.compare.summary import load

ROOT = Path(__file__).resolve().parents[1]
STUDY = "budgets"
TARGET = ROOT / "src" / "qpeft" / "methods" / "evidence.json"
LR_MARGIN = 0.05  # of the gain


class Setup(NamedTuple):
    """A base and a text, with the mean losses of the base as it is, and the mean test loss of the reference."""

    base: str
    base_parameters: int
    data: str
    steps: int
    untrained: float
    untrained_valid: float  # validation loss
    reference: float


class Result(NamedTuple):
    """What a design reached in a setup: test losses in nats per token by seed, at the learning rate chosen there.

    `tuning` has the validation losses of one other seed by learning rate, None where it failed.
    """

    trainable: int
    lr: float
    losses: dict[int, float]
    tuning: dict[float, float | None]


def evidence(root: Path = ROOT) -> dict[str, Any]:
    """The content of evidence.json from the results in the repository at `root`."""
    files = sorted((root / "results" / STUDY).iterdir(), key=lambda file: file.name.partition(".")[0])
    summaries = [load(file) for file in files]
    setups, results = [], []
    for found in summaries:
        study, loss = found.study, {m.key: m.metric for m in found.results if m.metric and not m.has_failures}
        untrained = next(m.key for m in found.results if not m.method.rates)
        setups.append(
            Setup(
                base=Path(study.run.model).name,
                base_parameters=study.params_total,
                data=Path(study.run.data).name,
                steps=study.run.steps,
                untrained=loss[untrained].mean,
                untrained_valid=found[untrained].mean("valid_loss"),
                reference=loss[study.reference].mean,
            )
        )
        results.append(
            {
                m.key: Result(
                    trainable=m.method.trainable,
                    lr=m.lr,
                    losses=_rounded(loss[m.key].values),
                    tuning=_tuning(m.trials),
                )
                for m in found.results
                if m.key in loss and m.lr is not None and len(m.successes) == len(study.seeds)
            }
        )
    reference = summaries[0][summaries[0].study.reference].label
    specs = [spec for spec in load_study(STUDY).methods if _has_adapter(spec)]
    designs = [
        {
            "label": spec.label,
            "method": spec.method,
            # frames are in a file, or stored: the budget decides
            "settings": spec.settings,
            **outcome(setups, [of_setup[spec.key] for of_setup in results]),
        }
        for spec in specs
        if all(spec.key in of_setup for of_setup in results)
    ]
    return {
        "study": f"qpeft compare run {STUDY}",
        "reference": reference,
        "designs": designs,
    }


def outcome(setups: list[Setup], results: list[Result]) -> dict[str, Any]:
    """What a design reached in the setups, and the learning rate that is safe in all of them and on each base."""
    both = list(zip(setups, results, strict=True))
    rates = {"": safe_learning_rate(both)}
    for base in dict.fromkeys(setup.base for setup in setups):
        rates[base] = safe_learning_rate([pair for pair in both if pair[0].base == base])
    return {
        "learning_rates": rates,
        "results": [
            {
                **{name: getattr(setup, name) for name in ("base", "base_parameters", "data", "steps")},
                "trainable": result.trainable,
                **interval([*result.losses.values()]),
                "share": share(setup, result),
            }
            for setup, result in both
        ],
    }


def interval(losses: list[float]) -> dict[str, Any]:
    """The number of seeds, the mean of their losses, and its 95 % interval by Student's t."""
    mean, reach = fmean(losses), float(student.ppf(0.975, len(losses) - 1)) * stdev(losses) / sqrt(len(losses))
    return {"seeds": len(losses), "loss": mean, "low": mean - reach, "high": mean + reach}


def share(setup: Setup, result: Result) -> float:
    """The gain in test loss over the untrained base, as a share of the reference's gain."""
    return (setup.untrained - fmean(result.losses.values())) / (setup.untrained - setup.reference)


def safe_learning_rate(results: list[tuple[Setup, Result]]) -> float:
    """The largest learning rate that is safe in all of these setups.

    In a setup, a learning rate costs the share of the gain in validation loss that the tuning run with it, or with the
    next higher one that was tried, loses to the best one. A learning rate is safe if its highest cost over the setups
    is within LR_MARGIN of the lowest possible.
    """
    by_setup = [_costs(*both) for both in results]
    tried = set.intersection(*({*costs} for costs in by_setup))
    highest = {rate: max(costs[rate] for costs in by_setup) for rate in tried}
    return max(rate for rate, cost in highest.items() if cost <= min(highest.values()) + LR_MARGIN)


def _costs(setup: Setup, result: Result) -> dict[float, float]:
    """By learning rate, without the highest: the share of the gain that it, or the next higher one, loses."""
    best = min(loss for loss in result.tuning.values() if loss is not None)
    lost = {
        rate: 1.0 if loss is None else (loss - best) / (setup.untrained_valid - best)
        for rate, loss in sorted(result.tuning.items())
    }
    if _has_failed_seed(setup, result):
        lost |= {rate: 1.0 for rate in lost if rate >= result.lr}
    return {rate: max(lost[rate], lost[higher]) for rate, higher in pairwise(lost)}


def _has_failed_seed(setup: Setup, result: Result) -> bool:
    """Whether a seed gained less than half as much as the median seed."""
    gains = [setup.untrained - loss for loss in result.losses.values()]
    return min(gains) < median(gains) / 2


def _rounded(losses: dict[int, float]) -> dict[int, float]:
    return {seed: round(loss, 6) for seed, loss in losses.items()}


def _tuning(trials: dict[float, Row | None]) -> dict[float, float | None]:
    """Validation losses by learning rate; None for a run that failed."""
    losses = {rate: row["valid_loss"] if row and succeeded(row) else None for rate, row in trials.items()}
    return {rate: None if loss is None else round(loss, 6) for rate, loss in losses.items()}


def _has_adapter(spec: Method) -> bool:
    return methods.get(spec.method).trains is Trains.ADAPTER


if __name__ == "__main__":
    write_json(TARGET, evidence())
