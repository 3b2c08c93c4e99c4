"""The evidence of `qpeft.suggest`: it has the losses of a study's rows, and learning rates that are safe in them."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import sem, t
from transformers import LlamaConfig

import evidence
import qpeft
import qpeft_lab.demo
from qpeft_lab.compare.summary import load

ROOT = Path(__file__).parents[2]
ENDS_WELL = {1.0: 3.1, 3.0: 3.0, 10.0: 3.02, 30.0: 3.2}  # the base has 4.0


@pytest.mark.parametrize(
    ("tunings", "expected"),
    [
        ([ENDS_WELL], 3.0),  # 10 is as good, but 30 loses 20 % of the gain
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: None}], 3.0),  # the best is next to one that failed
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: 4.0}], 3.0),
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: 3.9}, ENDS_WELL], 3.0),
        ([{1.0: 3.0, 3.0: 3.1, 10.0: 3.6, 30.0: None}, ENDS_WELL], 1.0),  # 3 is best in one, next to a loss in one
        ([{1.0: 3.0, 3.0: 3.03, 10.0: 3.02, 30.0: 3.07}], 10.0),  # the largest, within the margin
        ([{1.0: 3.0, 3.0: 3.03, 10.0: 3.02}], 3.0),  # nothing is known above 10
        ([{1.0: 3.1, 3.0: 3.0, 10.0: 3.0}, {1.0: 3.1, 3.0: 3.0, 5.0: 4.0, 10.0: 4.0}], 1.0),  # other grids
    ],
)
def test_learning_rate_is_the_largest_that_is_safe_in_all_setups(tunings, expected):
    setup = evidence.Setup("b", 10, "d", 1, untrained=4.0, untrained_valid=4.0, reference=3.0)
    results = [(setup, evidence.Result(1, 3.0, {0: 3.0, 1: 3.1, 2: 3.2}, tuning)) for tuning in tunings]
    assert evidence.safe_learning_rate(results) == expected


def test_packaged_evidence_is_that_of_the_published_results():
    assert json.loads(evidence.TARGET.read_text()) == json.loads(json.dumps(evidence.evidence()))


@pytest.fixture(scope="module")
def published():
    """Test losses by seed, and trainable parameters, of each trained method in each published folder of `budgets`."""
    found = {}
    for path in sorted((ROOT / "results" / "budgets").iterdir()):
        losses, trainable = found[path.name.partition(".")[0]] = defaultdict(dict), {}
        summary = load(path)
        for row in (row for row in summary.rows if row["status"] == "success" and "test_loss" in row):
            label = summary[row["method"]].label
            losses[label][row["seed"]] = row["test_loss"]
            trainable[label] = row["params_trainable"]
    return found


STORIES = LlamaConfig(
    hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4,
    vocab_size=512, tie_word_embeddings=True,
)  # fmt: skip


def _shares(cases):
    """By label: the mean share of LoRA r=8's gain."""
    shares = defaultdict(list)
    for losses, _ in cases:
        mean = {label: fmean(by_seed.values()) for label, by_seed in losses.items() if len(by_seed) == 5}
        untrained = fmean(losses["untrained base"].values())
        for label in mean.keys() - {"untrained base"}:
            shares[label].append((untrained - mean[label]) / (untrained - mean["LoRA r=8"]))
    return {label: fmean(found) for label, found in shares.items() if len(found) == len(cases)}


GPT2_CASES, LLAMA_CASES = ("embedded", "embedded-wikitext"), ("grimm", "wikitext")


@pytest.mark.parametrize(
    ("base", "cases", "parameters"),
    [
        *((None, GPT2_CASES, n) for n in (400, 5000)),
        *((STORIES, LLAMA_CASES, n) for n in (1300, 5000)),
    ],
)
def test_published_rows_have_no_better_adapter_within_the_budget(published, base, cases, parameters):
    """Computed from the rows alone."""
    shares, trainable = _shares([published[case] for case in cases]), published[cases[0]][1]
    best = max((label for label in shares if trainable[label] <= parameters), key=shares.__getitem__)
    found = qpeft.suggest(base or qpeft_lab.demo.base_path(), parameters=parameters)
    assert found.label == best
    assert found.share == pytest.approx(shares[best], abs=1e-5)
    assert found.plan.trainable == trainable[best]
    losses = [list(published[case][0][best].values()) for case in cases]
    intervals = [(fmean(own), *t.interval(0.95, len(own) - 1, loc=fmean(own), scale=sem(own))) for own in losses]
    assert sorted((row["loss"], row["low"], row["high"]) for row in found.results) == [
        pytest.approx(interval, abs=1e-5) for interval in sorted(intervals)
    ]
