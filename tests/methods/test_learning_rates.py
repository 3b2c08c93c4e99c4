"""Records have the learning rates that the published studies chose."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

from qpeft import methods
from qpeft.methods import Method

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_learning_rate_of_a_record_is_the_median_of_the_studies_medians():
    medians = defaultdict(list)
    for study in RESULTS.glob("*/*/study.json"):
        if len(json.loads(study.read_text())["tuning"]["grid"]) == 1:
            continue
        chosen = defaultdict(list)
        for row in csv.DictReader((study.parent / "summary.csv").read_text().splitlines()):
            if row["lr"]:
                chosen[row["method"]].append(float(row["lr"]))
        for method, rates in chosen.items():
            medians[method].append(median(rates))
    wrong = {
        method: (rate, median(found))
        for method, found in medians.items()
        if not 0.8 < (rate := methods.named(method).learning_rate) / median(found) < 1.25  # one digit
    }
    assert len(medians) > 10
    assert not wrong


@pytest.mark.parametrize(
    ("settings", "kind"), [({}, "quantum"), ({"family": "pauli"}, "quantum"), ({"family": "core"}, "classical")]
)
def test_settings_without_a_circuit_are_classical(settings, kind):
    assert methods.named("quantum_peft").kind_with(settings) == kind
    assert Method(key="x", title="x", kind="quantum").kind_with(settings) == "quantum"
