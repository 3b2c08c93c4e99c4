"""Writes the evidence of `qpeft.suggest`, src/qpeft/compare/evidence.json, from published results.

    python benchmarks/evidence.py

The results are the study `budgets` in docs/results/*/budgets. While there is none, they are those of
`small_budgets.py` on the two texts of stories260K, in benchmarks/results; the third setup lacks LoRA of rank 1, without
which the order above 3,000 parameters would be wrong. Designs have the settings and labels of the study `budgets`.
Left out are designs without an adapter, and those that are missing in a setup or failed with a seed; the program prints
their keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from qpeft import methods
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.evidence import FILE, Design, Evidence, Result, Setup
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import read_rows
from qpeft.compare.study import MethodSpec
from qpeft.compare.study_file import load_study
from qpeft.files import write_json
from qpeft.methods import Trains

ROOT = Path(__file__).resolve().parents[1]
STUDY = "budgets"
TARGET = ROOT / "src" / "qpeft" / "compare" / FILE
MADE_BY = "python benchmarks/evidence.py"
SMALL_BUDGETS = {"grimm": "Grimm's tales", "wikitext": "WikiText-2's validation file"}
SAME = {  # row of small_budgets_rows.py -> design of the study `budgets` with equal settings
    "gains-final": "gains_final",
    "framed-type-R4-r2": "type_R4",
    "core-R3": "core_R3",
    "framed-type-R32-r3+final": "type_R32_final",
    "framed-type-R32-r5": "type_R32",
    "framed-type-R8-r3-lie": "type_lie",
    "core-R3+final": "core_R3_final",
    "vera-qv-r16": "vera",
    "gains-all": "gains_all",
    "framed-own-R16-r16": "own_R16",
    "core-R6": "core_R6",
    "uni-lora-1300": "uni_1300",
    "framed-type-R32-r13+gains": "type_R32_gains",
    "plain-L1-r8": "plain_L1",
    "plain-L1-r8-signs": "plain_L1_signs",
    "plain-L2-r8": "plain_L2",
    "plain-L4-r32": "plain_L4",
    "lora-r1": "lora_r1",
}


def evidence(root: Path = ROOT) -> Evidence:
    """The evidence of the results in the repository at `root`."""
    folders = sorted(path.parent for path in (root / "docs" / "results").glob(f"*/{STUDY}/study.json"))
    return of_studies(folders) if folders else of_small_budgets(root / "benchmarks" / "results")


def of_studies(folders: list[Path]) -> Evidence:
    """From folders of the study `budgets`."""
    setups, results = [], []
    for folder in folders:
        found = summarise(read_study(folder), read_rows(folder))
        study, loss = found.study, {m.key: m.metric for m in found.methods if m.metric and not m.has_failures}
        untrained = next(m.key for m in found.methods if not m.is_trained)
        setups.append(
            Setup(
                base=Path(study.base.id).name,
                base_parameters=study.base.params_total,
                data=Path(study.data.id).name,
                steps=study.training.steps,
                untrained=loss[untrained].mean,
                reference=loss[study.reference].mean,
            )
        )
        results.append(
            {
                m.key: Result(trainable=m.trainable, lr=m.lr, losses=_rounded(loss[m.key].values))
                for m in found.methods
                if m.key in loss and m.lr is not None and m.ok == len(study.seeds)
            }
        )
    reference = next(m.label for m in found.methods if m.key == study.reference)
    return _combined(f"qpeft compare run {STUDY}", reference, setups, results)


def of_small_budgets(folder: Path) -> Evidence:
    """From the reports of `small_budgets.py`."""
    setups, results = [], []
    for name, data in SMALL_BUDGETS.items():
        report = json.loads((folder / f"small_budgets_{name}.json").read_text(encoding="utf-8"))
        rows = {row["method"]: row for row in report["rows"]}
        full = rows["full"]
        ends = {"untrained": fmean(rows["base"]["test"]), "reference": fmean(full["test"])}
        about: dict[str, Any] = {"base": "stories260K", "base_parameters": full["trainable"], "data": data}
        setups.append(Setup(**about, steps=report["steps"], **ends))
        results.append(
            {
                SAME[key]: Result(trainable=row["trainable"], lr=row["rate"], losses=dict(enumerate(row["test"])))
                for key, row in rows.items()
                if key in SAME
            }
        )
    return _combined("python benchmarks/small_budgets.py", "full fine-tuning", setups, results)


def left_out(setups: list[Setup], results: list[dict[str, Result]]) -> str:
    """The adapters of the study that are missing or failed in a setup, with this setup."""
    lacking: dict[str, list[str]] = {}
    for spec in filter(_has_adapter, load_study(STUDY).methods):
        where = [number for number, found in enumerate(results) if spec.key not in found]
        names = [f"{setups[i].base}, {setups[i].data}, {setups[i].steps} steps" for i in where]
        if where:
            lacking.setdefault("every setup" if len(where) == len(setups) else "; ".join(names), []).append(spec.key)
    return "".join(f"left out, missing or failed in {where}: {', '.join(keys)}\n" for where, keys in lacking.items())


def _combined(study: str, reference: str, setups: list[Setup], results: list[dict[str, Result]]) -> Evidence:
    designs = [
        Design(
            key=spec.key,
            label=spec.label or spec.key,
            method=spec.method,
            settings=spec.settings,
            results=[found[spec.key] for found in results],
        )
        for spec in load_study(STUDY).methods
        if _has_adapter(spec) and all(spec.key in found for found in results)
    ]
    print(left_out(setups, results), end="")
    return Evidence(study=study, made_by=MADE_BY, reference=reference, setups=setups, designs=designs)


def _rounded(losses: dict[int, float]) -> dict[int, float]:
    return {seed: round(loss, 6) for seed, loss in losses.items()}


def _has_adapter(spec: MethodSpec) -> bool:
    return methods.get(spec.method).trains is Trains.ADAPTER


if __name__ == "__main__":
    write_json(TARGET, evidence().model_dump(mode="json"))
