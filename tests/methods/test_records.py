"""Records of methods have the learning rates of the studies."""

import copy
import dataclasses
import json
import lzma
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest
from peft import get_peft_model

import qpeft
import qpeft_lab.method_records  # noqa: F401  # the records of trained tokens and others
from qpeft import methods
from qpeft.errors import ConfigError
from qpeft.methods import Method

RESULTS = Path(__file__).resolve().parents[2] / "results"
# which chose no rates of a record: searches, factors on the rates of QPA's angles, and adapters of
# the two upper layers alone
SEARCHES = ("equal-search", "margins", "quantum-adapters", "edges", "angles", "smollm2-twins")


def test_learning_rate_of_a_record_is_the_median_of_the_studies_medians():
    medians = defaultdict(list)
    further = defaultdict(list)
    for file in RESULTS.glob("*/*.jsonl.xz"):
        study, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
        # has those of its search
        has_rates = len(study["tuning"]["grid"]) > 1 or study["name"].endswith("-final")
        if not has_rates or study["name"] in SEARCHES:
            continue
        rates = {row["method"]: row["lr"] for row in rows if row["role"] not in ("tuning", "cost")}
        chosen = defaultdict(list)
        for method in study["methods"]:
            if rates.get(method["key"]):
                chosen[method["method"]].append(rates[method["key"]])
        for method, rates in chosen.items():
            (further if study["name"] == "quantum-adapters-final" else medians)[method].append(
                median(rates)
            )
    medians = further | medians  # that study counts for methods of which there is no other
    wrong = {
        method: (rate, median(found))
        for method, found in medians.items()
        if not 0.8 < (rate := methods.get(method).learning_rate) / median(found) < 1.25  # one digit
    }

    assert len(medians) > 20
    assert not wrong


@pytest.mark.parametrize(
    "settings, kind",
    [({}, "quantum"), ({"family": "pauli"}, "quantum"), ({"family": "core"}, "classical")],
)
def test_settings_without_a_circuit_are_classical(settings, kind):
    assert methods.get("quantum_peft").kind_with(settings) == kind
    assert Method(key="x", title="x", kind="quantum").kind_with(settings) == "quantum"


def test_copied_folder_with_the_old_name_of_its_type_is_refused():
    copied = dataclasses.replace(methods.get("quanta"), key="copied")
    with pytest.raises(ConfigError, match="'QPEFT_COPIED'"):
        copied.config_class  # noqa: B018


@pytest.mark.parametrize("method", [m for m in methods.records() if "frozen" in m.controls])
def test_frozen_control_trains_no_angles(method, llama):
    def trained(**settings):
        config = method.config_class(target_modules=["q_proj"], **settings)
        groups = qpeft.param_groups(get_peft_model(copy.deepcopy(llama), config), lr=1.0)
        return {group["name"] for group in groups}

    assert trained() - trained(**method.controls["frozen"].settings) == {"angles"}
