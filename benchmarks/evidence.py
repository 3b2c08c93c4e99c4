"""Writes the evidence of `qpeft.suggest`, src/qpeft/compare/evidence.json, from published results.

    python benchmarks/evidence.py

The results are the study `budgets` in docs/results/*/budgets. Left out are designs without an adapter, and those that
are missing in a setup or failed with a seed; the program prints their keys.
"""

from __future__ import annotations

from pathlib import Path

from qpeft import methods
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.evidence import FILE, Design, Evidence, Result, Setup
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Row, read_rows
from qpeft.compare.study import MethodSpec
from qpeft.compare.study_file import load_study
from qpeft.files import write_json
from qpeft.methods import Trains

ROOT = Path(__file__).resolve().parents[1]
STUDY = "budgets"
TARGET = ROOT / "src" / "qpeft" / "compare" / FILE
MADE_BY = "python benchmarks/evidence.py"


def evidence(root: Path = ROOT) -> Evidence:
    """The evidence of the results in the repository at `root`."""
    folders = sorted(path.parent for path in (root / "docs" / "results").glob(f"*/{STUDY}/study.json"))
    summaries = [summarise(read_study(folder), read_rows(folder)) for folder in folders]
    setups, results = [], []
    for found in summaries:
        study, loss = found.study, {m.key: m.metric for m in found.methods if m.metric and not m.has_failures}
        untrained = next(m.key for m in found.methods if not m.is_trained)
        setups.append(
            Setup(
                base=Path(study.base.id).name,
                base_parameters=study.base.params_total,
                data=Path(study.data.id).name,
                steps=study.training.steps,
                untrained=loss[untrained].mean,
                untrained_valid=found[untrained].measurements["quality.valid_loss"].mean,
                reference=loss[study.reference].mean,
            )
        )
        results.append(
            {
                m.key: Result(
                    trainable=m.trainable,
                    lr=m.lr,
                    losses=_rounded(loss[m.key].values),
                    tuning=_tuning(found.rows[m.key].trials),
                )
                for m in found.methods
                if m.key in loss and m.lr is not None and m.ok == len(study.seeds)
            }
        )
    reference = summaries[0][summaries[0].study.reference].label
    designs = [
        Design(
            key=spec.key,
            label=spec.label or spec.key,
            method=spec.method,
            settings=spec.settings,
            results=[of_setup[spec.key] for of_setup in results],
        )
        for spec in load_study(STUDY).methods
        if _has_adapter(spec) and all(spec.key in of_setup for of_setup in results)
    ]
    print(left_out(setups, results), end="")
    study = f"qpeft compare run {STUDY}"
    return Evidence(study=study, made_by=MADE_BY, reference=reference, setups=setups, designs=designs)


def left_out(setups: list[Setup], results: list[dict[str, Result]]) -> str:
    """The adapters of the study that are missing or failed in a setup, with this setup."""
    lacking: dict[str, list[str]] = {}
    for spec in filter(_has_adapter, load_study(STUDY).methods):
        where = [number for number, found in enumerate(results) if spec.key not in found]
        names = [f"{setups[i].base}, {setups[i].data}, {setups[i].steps} steps" for i in where]
        if where:
            lacking.setdefault("every setup" if len(where) == len(setups) else "; ".join(names), []).append(spec.key)
    return "".join(f"left out, missing or failed in {where}: {', '.join(keys)}\n" for where, keys in lacking.items())


def _rounded(losses: dict[int, float]) -> dict[int, float]:
    return {seed: round(loss, 6) for seed, loss in losses.items()}


def _tuning(trials: list[tuple[float, Row | None]]) -> dict[float, float | None]:
    """Validation losses by learning rate; None for a run that failed."""
    losses = {rate: row.quality.valid_loss if row is not None and row.succeeded else None for rate, row in trials}
    return {rate: None if loss is None else round(loss, 6) for rate, loss in losses.items()}


def _has_adapter(spec: MethodSpec) -> bool:
    return methods.get(spec.method).trains is Trains.ADAPTER


if __name__ == "__main__":
    write_json(TARGET, evidence().model_dump(mode="json"))
