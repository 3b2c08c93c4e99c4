"""The evidence of `qpeft.suggest`: it has the losses of a study's rows, and learning rates that are safe in them."""

import importlib.util
import json
import sys
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import sem, t
from tiny_models import make_text
from transformers import GPT2Config, LlamaConfig

import qpeft
import qpeft_lab.demo
from qpeft_lab.compare.cell import started_row
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.study import load_study
from qpeft_lab.compare.summary import load, publish
from qpeft_lab.files import json_line

ROOT = Path(__file__).parents[2]
BASE = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)  # 512 parameters per rank of LoRA
KEYS = ("none", "lora_r1", "lora_r8", "uni_64", "plain_L1", "core_R2")
# by key: test loss in two setups; the base has 4.0 and 5.0
LOSSES = {
    "none": (4.0, 5.0),
    "core_R2": (3.8, 4.9),
    "uni_64": (3.5, 4.5),
    "plain_L1": (3.2, 4.1),
    "lora_r1": (3.2, 4.0),
    "lora_r8": (3.0, 3.0),
}


@cache
def evidence_script():
    """The program that writes the evidence."""
    spec = importlib.util.spec_from_file_location("evidence_script", ROOT / "benchmarks" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return evidence_script()


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_model):
    """A repository with the rows of the study `budgets` in two setups, of which one has a diverged seed."""
    root = tmp_path_factory.mktemp("repository")
    text = root / "tale.txt"
    text.write_text(make_text(800))
    for number, setup in enumerate(("one", "two")):
        folder = root / "runs" / setup
        asked = {"base": str(tiny_model), "data": str(text), "training.steps": 10 + number, "training.seq_len": 32}
        study = load_study("budgets", asked)
        alone = {"role": "main", "against": None}  # without the method that it is a control of
        kept = [method.model_copy(update=alone) for method in study.methods if method.key in KEYS]
        study = study.model_copy(update={"methods": kept})
        plan = make_plan(study, folder)
        plan.study.write(folder)
        rows = []
        for cell in plan.tuning_cells({}):
            is_lost = cell.lr == cell.spec.rates[-1]
            loss = LOSSES[cell.method][number] + 0.1 * cell.spec.rates.index(cell.lr)
            row = started_row(cell)
            rows.append(row | {"status": "diverged" if is_lost else "success", "valid_loss": loss})
        for cell in plan.final_cells({}):
            loss = LOSSES[cell.method][number] + 0.01 * cell.seed
            row = started_row(replace(cell, lr=(cell.spec.rates or [None])[0], impossible=None))
            is_lost = (cell.method, setup, cell.seed) == ("core_R2", "two", 3)
            status = "diverged" if is_lost else "success"
            rows.append(row | {"status": status, "test_loss": loss, "valid_loss": loss + 0.5})
        (folder / "rows.jsonl").write_text("".join(map(json_line, rows)))
        publish(folder, root / "results" / "budgets" / f"{setup}.jsonl.xz")
    return root


@pytest.fixture
def evidence(script, repository):
    return script.evidence(repository)


def test_evidence_has_the_losses_of_the_rows(evidence):
    labels = ["LoRA r=1", "LoRA r=8", "Uni-LoRA, 64", "Quantum-PEFT, L=1, r=8"]
    assert [design["label"] for design in evidence["designs"]] == labels
    uni = evidence["designs"][2]
    assert (uni["method"], uni["settings"]) == ("uni_lora", {"r": 4, "theta_d_length": 64})
    assert [row["steps"] for row in uni["results"]] == [10, 11]
    losses = [4.5, 4.51, 4.52, 4.53, 4.54]
    interval = t.interval(0.95, 4, loc=4.52, scale=sem(losses))
    row = uni["results"][1]
    assert (row["loss"], row["low"], row["high"]) == pytest.approx((4.52, *interval))
    shares = [(4.0 - 3.52) / (4.0 - 3.02), (5.0 - 4.52) / (5.0 - 3.02)]
    assert [result["share"] for result in uni["results"]] == pytest.approx(shares)


ENDS_WELL = {1.0: 3.1, 3.0: 3.0, 10.0: 3.02, 30.0: 3.2}  # the base has 4.0


@pytest.mark.parametrize(
    ("tunings", "expected"),
    [
        ([ENDS_WELL], 3.0),  # 10 is as good, but 30 loses 20 % of the gain
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: None}], 3.0),  # the best is next to one that failed
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: 4.0}], 3.0),
        ([{1.0: 3.1, 3.0: 3.08, 10.0: 3.0, 30.0: 3.9}, ENDS_WELL], 3.0),
        (
            [{1.0: 3.0, 3.0: 3.1, 10.0: 3.6, 30.0: None}, ENDS_WELL],
            1.0,
        ),  # 3 is best in one setup, next to a loss in one
        ([{1.0: 3.0, 3.0: 3.03, 10.0: 3.02, 30.0: 3.07}], 10.0),  # the largest, within the margin
        ([{1.0: 3.0, 3.0: 3.03, 10.0: 3.02}], 3.0),  # nothing is known above 10
        ([{1.0: 3.1, 3.0: 3.0, 10.0: 3.0}, {1.0: 3.1, 3.0: 3.0, 5.0: 4.0, 10.0: 4.0}], 1.0),  # other grids
    ],
)
def test_learning_rate_is_the_largest_that_is_safe_in_all_setups(tunings, expected):
    assert learning_rate(tunings, {0: 3.0, 1: 3.1, 2: 3.2}) == expected


def learning_rate(tunings, losses, lr=3.0):
    script = evidence_script()
    setup = script.Setup("b", 10, "d", 1, untrained=4.0, untrained_valid=4.0, reference=3.0)
    return script.safe_learning_rate([(setup, script.Result(1, lr, losses, tuning)) for tuning in tunings])


def test_packaged_evidence_is_that_of_the_published_results(script):
    assert json.loads(script.TARGET.read_text()) == json.loads(json.dumps(script.evidence()))


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


@pytest.mark.parametrize("parameters", [40, 64, 250, 400, 1300, 5000, 50000])
@pytest.mark.parametrize(
    ("base", "cases"),
    [(None, ("embedded", "embedded-wikitext")), (STORIES, ("grimm", "wikitext"))],
    ids=["gpt2", "llama"],
)
def test_published_rows_have_no_better_adapter_within_the_budget(published, base, cases, parameters):
    """Computed from the rows alone."""
    shares, trainable = _shares([published[case] for case in cases]), published[cases[0]][1]
    best = max((label for label in shares if trainable[label] <= parameters), key=shares.__getitem__)
    found = qpeft.suggest(base or qpeft_lab.demo.base_path(), parameters=parameters)
    assert found.label == best
    assert found.share == pytest.approx(shares[best], abs=1e-5)
    assert found.plan.trainable == trainable[best]
