"""Random projections of PEFT's methods are drawn from the seed of the run, unless their own seed is given."""

import copy
import math
import re
from dataclasses import fields

import pytest
import torch
from peft import PeftModel
from runs import Killed, assert_same_result, kill_at
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.methods import get, keys
from qpeft.training import TrainSettings, train
from qpeft.training import methods as of_run
from qpeft.training.blocks import load_blocks
from qpeft.training.methods import build_adapter
from qpeft.training.metrics import evaluate_language_model

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

FIELDS = {
    "uni_lora": "proj_seed",
    "tiny_lora": "projection_seed",
    "vera": "projection_prng_key",
    "fourierft": "random_loc_seed",
}
SIZES = {
    "uni_lora": {"r": 2, "theta_d_length": 64},
    "tiny_lora": {"r": 4, "u": 3},
    "vera": {"r": 4},
    "fourierft": {"n_frequency": 50},
}
WHERE = ("unilora_indices_A", "unilora_indices_B", "tinylora_P", "vera_A", "vera_B", "indices")
GENERATOR = {"chunk_size": 32, "features": 4, "n_layers": 2}
RUNS = {
    **{method: {"method": method, "method_settings": sizes, "seed": 3} for method, sizes in SIZES.items()},
    "qpa over vera": {"method": "qpa", "host": "vera", "method_settings": GENERATOR, "seed": 3},
}
GIVEN = [
    pytest.param(given, id=name, marks=[pytest.mark.long] if "over" in name else []) for name, given in RUNS.items()
]


def build(tiny_model, method, seed, host="lora", **method_settings):
    settings = TrainSettings(model=str(tiny_model), data="d", out="o", method=method, host=host, seed=seed)
    settings.method_settings = {**SIZES.get(method, {}), **method_settings}
    torch.manual_seed(0)
    return build_adapter(settings, AutoModelForCausalLM.from_pretrained(tiny_model))


def projections(model):
    """The frozen random tensors of every module."""
    found = [getattr(module, name) for module in model.modules() for name in WHERE if hasattr(module, name)]
    return [tensors["default"] for tensors in found if "default" in tensors]


def are_equal(model, other):
    ours, theirs = projections(model), projections(other)
    assert len(ours) == len(theirs) > 0
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("method", FIELDS)
def test_projections_are_drawn_from_the_seed_of_the_run(tiny_model, method):
    first, again, other = (build(tiny_model, method, seed) for seed in (1, 1, 2))
    assert are_equal(first, again)
    assert not are_equal(first, other)
    assert all(not torch.equal(a, b) for a, b in zip(projections(first), projections(other), strict=True))


@pytest.mark.parametrize("method", FIELDS)
def test_given_seed_of_projections_replaces_that_of_the_run(tiny_model, method):
    first, other = (build(tiny_model, method, seed, **{FIELDS[method]: 5}) for seed in (1, 2))
    assert are_equal(first, other)
    assert getattr(first.peft_config["default"], FIELDS[method]) == 5
    assert not are_equal(first, build(tiny_model, method, 1))


def test_projections_of_a_host_are_drawn_from_the_seed_of_the_run(tiny_model):
    first, again, other, given = (
        build(tiny_model, "qpa", seed, "vera", **GENERATOR, **more)
        for seed, more in ((1, {}), (1, {}), (2, {}), (2, {"projection_prng_key": 1}))
    )
    assert are_equal(first, again)
    assert not are_equal(first, other)
    assert are_equal(first, given)


def test_modules_of_tiny_lora_share_no_projection_between_seeds(tiny_model):
    """PEFT's seed of a module is `projection_seed` plus the index of the module."""
    first, other = (projections(build(tiny_model, "tiny_lora", seed)) for seed in (1, 2))
    assert len(first) > 2
    assert not any(torch.equal(a, b) for a in first for b in other)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("method", FIELDS)
def test_every_seed_of_a_run_is_a_seed_of_projections(tiny_model, method, seed):
    assert projections(build(tiny_model, method, seed))


@pytest.mark.parametrize("key", keys())
def test_records_name_every_seed_of_a_config(key):
    """A method of PEFT whose config has another seed needs `seed_field` in its record."""
    if (record := get(key)).config is None:
        return
    names = {f.name for f in fields(record.config_class)}
    assert {name for name in names if re.search("seed|prng", name)} <= {record.seed_field}
    assert record.seed_field in {"seed", *names}
    assert (record.seed_field == FIELDS[key]) if key in FIELDS else (record.seed_field == "seed")


@pytest.mark.parametrize("given", GIVEN)
def test_killed_run_resumes_with_its_projections(settings, given):
    unbroken = train(settings("unbroken", **given))
    with pytest.raises(Killed):
        train(settings("killed", **given), kill_at(5))
    assert_same_result(train(settings("killed", **given)).out, unbroken.out)


@pytest.mark.parametrize("given", GIVEN)
def test_run_of_an_earlier_version_resumes_with_its_projections(settings, monkeypatch, given):
    with monkeypatch.context() as earlier:
        earlier.setattr(of_run, "seed_value", lambda settings: {})
        unbroken = train(settings("unbroken", **given))
        with pytest.raises(Killed):
            train(settings("killed", **given), kill_at(5))
    assert_same_result(train(settings("killed", **given)).out, unbroken.out)
    own = train(settings("own", **given))
    assert own.after.loss != unbroken.after.loss


@pytest.mark.filterwarnings("ignore:Specified to not (load|save):UserWarning")
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("method", FIELDS)
def test_saved_adapter_has_the_score_of_the_run(settings, tokenizer, method, stored):
    """Also if the projections are drawn again from the config of the adapter."""
    option = {"vera": "save_projection", "tiny_lora": "save_projection", "uni_lora": "save_indices"}.get(method)
    own = {option: stored} if option else {}
    asked = settings(method=method, method_settings={**SIZES[method], **own}, seed=3, lr=5e-2)
    result = train(asked)
    assert math.isfinite(result.after.loss)
    assert result.after.loss != result.before.loss
    base = AutoModelForCausalLM.from_pretrained(asked.model)
    blocks = load_blocks(asked, asked.seq_len, tokenizer).evaluation
    loaded = qpeft.load(copy.deepcopy(base), result.adapter), PeftModel.from_pretrained(base, result.exported)
    for model in loaded:
        assert getattr(model.peft_config["default"], FIELDS[method]) == 3 * get(method).seed_step
        found = evaluate_language_model(model.eval(), blocks, asked.batch_size)
        assert found.loss == pytest.approx(result.after.loss, abs=1e-5)
