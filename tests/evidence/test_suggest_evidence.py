"""The evidence of `qpeft.suggest`: it has the losses of a study's rows, and learning rates that are
safe in them.
"""

import json
from collections import defaultdict
from statistics import fmean
from types import SimpleNamespace

import pytest
from peft import LoraConfig
from safetensors.torch import load_file
from scipy.stats import sem, t
from transformers import LlamaConfig

import page_tables
import qpeft
import qpeft_lab.demo
import suggest_evidence
import winners
from qpeft_lab.compare.study import Study

ENDS_WELL = {1.0: 3.1, 3.0: 3.0, 10.0: 3.02, 30.0: 3.2}  # the base has 4.0


@pytest.mark.parametrize(
    "tunings, expected",
    [
        ([ENDS_WELL], 3.0),
        (
            [{1.0: 3.1, 3.0: 3.03, 10.0: 3.0, 30.0: None}],
            3.0,
        ),  # the best is next to one that failed
        ([{1.0: 3.1, 3.0: 3.03, 10.0: 3.0, 30.0: 4.0}], 3.0),
        ([{1.0: 3.1, 3.0: 3.03, 10.0: 3.0, 30.0: 3.9}, ENDS_WELL], 3.0),
        (
            [{1.0: 3.0, 3.0: 3.1, 10.0: 3.6, 30.0: None}, ENDS_WELL],
            1.0,
        ),  # 3 is best in one, next to a loss in one
        ([{1.0: 3.1, 3.0: 3.05, 10.0: 3.0}], 3.0),  # nothing is known above 10
        (
            [{1.0: 3.05, 3.0: 3.0, 10.0: 3.0}, {1.0: 3.05, 3.0: 3.0, 5.0: 4.0, 10.0: 4.0}],
            1.0,
        ),  # other grids
    ],
)
def test_learning_rate_is_safe_in_all_searches(tunings, expected):
    found = [
        suggest_evidence.Tuning("b", untrained=4.0, gain=1.0, losses=losses) for losses in tunings
    ]
    assert suggest_evidence.safe_learning_rate(found) == expected


def test_packaged_evidence_is_that_of_the_published_results():
    assert json.loads(suggest_evidence.TARGET.read_text()) == json.loads(
        json.dumps(suggest_evidence.evidence())
    )


def test_lost_gain_is_that_of_a_choice_without_the_base():
    def searched(on_a, on_b):
        return [
            suggest_evidence.Tuning(base, 4.0, 1.0, losses)
            for base, losses in (("a", on_a), ("b", on_b))
        ]

    # the best on a
    one = searched({1.0: 3.0, 3.0: 3.2, 10.0: 3.4}, {1.0: 3.6, 3.0: 3.5, 10.0: 3.9})
    # the best on b
    other = searched({0.3: 3.5, 0.9: 3.3, 2.7: 3.4}, {0.3: 3.6, 0.9: 3.4, 2.7: None})

    # b chooses the other, with 0.9 or, next to a failure, 0.3; a chooses the first with 1
    assert suggest_evidence.lost({"one": one, "other": other}) == pytest.approx([0.3, 1 / 3])
    assert suggest_evidence.lost({"one": one}) == pytest.approx([0.2, 0.2])


STORIES = LlamaConfig(**page_tables.STORIES, tie_word_embeddings=True)
SETUPS = {"stories": STORIES, "embedded": qpeft_lab.demo.base_path()}


@pytest.fixture(scope="module")
def published():
    """By setup, the test losses of each method."""
    found = {}
    for setup, summary in winners.summaries_of(winners.FINAL).items():
        losses = found[setup] = defaultdict(list)
        for row in summary.rows:
            losses[row["method"]].append(row["test_loss"])
    return found


@pytest.mark.parametrize("budget", winners.BUDGETS)
@pytest.mark.parametrize("base", SETUPS)
def test_published_rows_have_no_better_adapter_within_the_budget(published, base, budget):
    """Computed from the rows alone."""
    cases = [losses for setup, losses in published.items() if setup.startswith(base)]
    shares = {}
    for key in set.intersection(*map(set, published.values())) - {"none"}:
        if int(key.rpartition("_")[2]) <= budget:
            means = [
                {name: fmean(losses[name]) for name in ("none", "lora_5000", key)}
                for losses in cases
            ]
            shares[key] = fmean((m["none"] - m[key]) / (m["none"] - m["lora_5000"]) for m in means)
    best = max(shares, key=shares.__getitem__)
    suggestion = qpeft.suggest(SETUPS[base], parameters=budget)

    assert suggestion.plan.trainable <= suggestion.budget == int(best.rpartition("_")[2])
    assert suggestion.share == pytest.approx(shares[best], abs=1e-5)

    own = [losses[best] for losses in cases]
    intervals = [
        (fmean(one), *t.interval(0.95, len(one) - 1, loc=fmean(one), scale=sem(one))) for one in own
    ]
    assert sorted((row["loss"], row["low"], row["high"]) for row in suggestion.results) == [
        pytest.approx(interval, abs=1e-5) for interval in sorted(intervals)
    ]


def test_every_adapter_runs_on_a_base_that_no_search_knows():
    study = suggest_evidence.study_elsewhere("bytes1m")
    assert {method["key"] for method in study["methods"]} == {"none", *suggest_evidence.designs()}
    assert Study.model_validate(study).methods[1].lr > 0

    study = Study.model_validate(suggest_evidence.study_elsewhere("bytes1m", rates=True))
    assert {method.key.partition("_")[0] for method in study.methods} == {
        "none",
        *suggest_evidence.RATED,
    }


@pytest.mark.parametrize("base", SETUPS)
def test_quantities_of_a_base_are_those_of_its_plan(base):
    lora = qpeft.plan(
        SETUPS[base], LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    found = {
        what: of.get(base) or of["stories260K"] for what, of in suggest_evidence.QUANTITIES.items()
    }
    assert found["linear maps"] == len(lora.target_modules)
    assert found["parameters of LoRA r=1"] == lora.trainable


@pytest.mark.parametrize("base", ["embedded", "bytes1m"])
def test_norms_of_a_base_are_means_over_its_maps(base):
    folder = (
        qpeft_lab.demo.base_path()
        if base == "embedded"
        else winners.ROOT / "evidence" / "bases" / base
    )
    tensors = load_file(f"{folder}/model.safetensors").items()
    maps = [
        w.float() for name, w in tensors if w.ndim == 2 and (".h." in name or ".layers." in name)
    ]

    assert len(maps) == suggest_evidence.QUANTITIES["linear maps"][base]

    means = [
        fmean(w.norm().item() for w in maps),
        fmean(w.square().mean().sqrt().item() for w in maps),
    ]
    found = [
        suggest_evidence.QUANTITIES[name][base] for name in ("norm of a map", "r.m.s. of a weight")
    ]
    assert found == pytest.approx(means, rel=5e-3)


def test_regret_is_the_share_of_the_best_gain_that_the_answer_of_suggest_loses(monkeypatch):
    known = {
        "uni_128_a": (128, 0.5),
        "xs_128_a": (128, 0.4),
        "qpa_128_a": (128, 0.8),
        "lora_400_a": (400, 0.9),
    }
    designs = {
        key: {"budget": most, "results": [{"share": share}]} for key, (most, share) in known.items()
    }
    monkeypatch.setattr(suggest_evidence, "designs", lambda: designs)
    found = {
        "uni_128_a": (128, 3.5),
        "xs_128_a": (100, 3.2),
        "qpa_128_a": (140, 3.1),
        "lora_400_a": (400, 3.0),
    }

    results = [
        SimpleNamespace(
            key=key, metric=SimpleNamespace(mean=loss), method=SimpleNamespace(trainable=size)
        )
        for key, (size, loss) in found.items()
    ]
    untrained = SimpleNamespace(mean={"test_loss": 4.0}.get)
    summary = type("Measured", (dict,), {"results": results})(none=untrained)
    regret = suggest_evidence.regret(summary, 128)

    assert regret.answer == "uni_128_a"  # QPA is too large here
    assert regret.best == "xs_128_a"
    assert regret.share == pytest.approx(0.3 / 0.8)
    assert suggest_evidence.regret(summary, 400) == ("lora_400_a", "lora_400_a", 0.0)
