"""`qpeft.suggest`: the best measured adapter within a budget, from rows of a study."""

import copy
import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import make_text
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

import qpeft
import qpeft.demo
from qpeft.compare import suggest as suggest_module
from qpeft.compare.cell import started_row
from qpeft.compare.evidence import Design, Evidence, Result, Setup, is_better, read_evidence
from qpeft.compare.plan import make_plan
from qpeft.compare.rows import Quality, line_of
from qpeft.compare.study_file import load_study
from qpeft.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]
BASE = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)  # 512 parameters per rank of LoRA
LLAMA = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
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
TUNING = {0.03: 3.6, 0.1: 3.5, 0.3: 3.55}  # validation losses by learning rate; the base has 4.0


@pytest.fixture(scope="module")
def script():
    """The program that writes the evidence."""
    spec = importlib.util.spec_from_file_location("evidence_script", ROOT / "benchmarks" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_model):
    """A repository with the rows of the study `budgets` in two setups, of which one has a diverged seed."""
    root = tmp_path_factory.mktemp("repository")
    text = root / "tale.txt"
    text.write_text(make_text(800))
    for number, setup in enumerate(("one", "two")):
        folder = root / "docs" / "results" / setup / "budgets"
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
            rows.append(row.updated(status="diverged" if is_lost else "success", quality=Quality(valid_loss=loss)))
        for cell in plan.final_cells({}):
            loss = LOSSES[cell.method][number] + 0.01 * cell.seed
            row = started_row(cell.model_copy(update={"lr": (cell.spec.rates or [None])[0], "impossible": None}))
            quality = Quality(test_loss=loss, valid_loss=loss + 0.5)
            is_lost = (cell.method, setup, cell.seed) == ("core_R2", "two", 3)
            rows.append(row.updated(status="diverged" if is_lost else "success", quality=quality))
        (folder / "rows.jsonl").write_text("".join(map(line_of, rows)))
    return root


@pytest.fixture
def evidence(script, repository, monkeypatch):
    found = script.evidence(repository)
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: found)
    return found


def test_evidence_has_the_losses_of_the_rows(evidence):
    assert [setup.steps for setup in evidence.setups] == [10, 11]
    assert [setup.untrained for setup in evidence.setups] == [4.0, 5.0]
    assert [setup.reference for setup in evidence.setups] == pytest.approx([3.02, 3.02])
    assert [design.key for design in evidence.designs] == ["lora_r1", "lora_r8", "uni_64", "plain_L1"]  # all seeds ran
    uni = evidence.designs[2]
    assert (uni.label, uni.method, uni.settings) == ("Uni-LoRA, 64", "uni_lora", {"r": 4, "theta_d_length": 64})
    assert uni.results[1].losses == pytest.approx({seed: 4.5 + 0.01 * seed for seed in range(5)})
    assert [setup.untrained_valid for setup in evidence.setups] == [4.5, 5.5]
    assert uni.results[1].tuning == pytest.approx({0.02: 4.5, 0.06: 4.6, 0.2: 4.7, 0.6: 4.8, 2.0: None})
    assert evidence.shares(uni) == pytest.approx([(4.0 - 3.52) / (4.0 - 3.02), (5.0 - 4.52) / (5.0 - 3.02)])


def test_designs_that_are_left_out_of_the_evidence_are_printed(script, repository, capsys):
    script.evidence(repository)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines if ", 11 steps" in line] == ["core_R2"]  # a seed diverged
    everywhere = next(line for line in lines if "in every setup" in line).split(": ")[1].split(", ")
    assert "lora_r2" in everywhere
    assert "lora_r1" not in everywhere


@pytest.mark.parametrize(
    ("budget", "label", "trainable"),
    [
        ({"parameters": 64}, "Uni-LoRA, 64", 64),
        ({"parameters": 511}, "Quantum-PEFT, L=1, r=8", None),
        ({"parameters": 512}, "LoRA r=1", 512),
        ({"parameters": 10**6}, "LoRA r=8", 8 * 512),
        ({"bytes": 4 * 512}, "LoRA r=1", 512),
    ],
)
def test_best_measured_adapter_within_the_budget_is_suggested(evidence, budget, label, trainable):
    found = qpeft.suggest(BASE, **budget)
    assert found.label == label
    assert found.plan == qpeft.plan(BASE, found.config)
    assert found.plan.trainable == (trainable or found.plan.trainable)
    assert (found.plan.trainable if "parameters" in budget else found.plan.stored_bytes) <= next(iter(budget.values()))


def test_suggestion_shows_its_evidence(evidence):
    found = qpeft.suggest(BASE, parameters=600)
    first = found.evidence[0]
    assert first.loss == pytest.approx(3.22)
    assert first.low < first.loss < first.high
    assert first.high - first.low == pytest.approx(2 * 2.776 * 0.0158114 / 5**0.5, rel=1e-3)
    assert found.share == pytest.approx((0.78 / 0.98 + 0.98 / 1.98) / 2)
    # as good in the first setup, worse in the second; Uni-LoRA is worse in both
    assert [one.label for one in found.alternatives] == ["Quantum-PEFT, L=1, r=8"]
    assert found.to_dict()["plan"]["trainable"] == 512


def test_better_means_better_in_every_setup():
    def design(*losses):
        results = [Result(trainable=1, lr=1.0, losses=dict(enumerate(found)), tuning={}) for found in losses]
        return Design(key="", label="", method="lora", settings={}, results=results)

    worse = design([3.0, 3.1, 3.2], [2.0, 2.1, 2.2])
    assert is_better(design([2.9, 3.0, 3.11], [1.9, 2.0, 2.11]), worse)
    assert not is_better(design([2.9, 3.0, 3.11], [1.9, 2.2, 2.11]), worse)


def one_setup(base_parameters):
    return Setup(
        base="b", base_parameters=base_parameters, data="d", steps=1, untrained=4.0, untrained_valid=4.0, reference=3.0
    )


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


def test_learning_rate_keeps_away_from_one_with_a_failed_seed():
    tuning = {1.0: 3.1, 3.0: 3.0, 10.0: 3.0, 30.0: 3.0}
    assert learning_rate([tuning], {0: 3.0, 1: 3.1, 2: 3.2}, lr=10.0) == 10.0
    assert learning_rate([tuning], {0: 3.0, 1: 3.1, 2: 3.9}, lr=10.0) == 1.0


def learning_rate(tunings, losses, lr=3.0):
    results = [Result(trainable=1, lr=lr, losses=losses, tuning=tuning) for tuning in tunings]
    design = Design(key="k", label="l", method="lora", settings={}, results=results)
    setups = [one_setup(10)] * len(tunings)
    return Evidence(study="s", made_by="m", reference="r", setups=setups, designs=[design]).learning_rate(design)


@pytest.fixture
def with_frame_file(evidence, monkeypatch):
    """Evidence in which the best adapter below 1,000 bytes leaves out its gradient frames."""
    spec = next(one for one in load_study("budgets").methods if one.key == "type_R4")
    results = [
        Result(trainable=1, lr=0.004, losses={seed: loss + 0.01 * seed for seed in range(5)}, tuning=TUNING)
        for loss in (3, 4)
    ]
    design = Design(key=spec.key, label=spec.label, method=spec.method, settings=spec.settings, results=results)
    found = evidence.model_copy(update={"designs": [*evidence.designs, design]})
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: found)
    return design


def test_frame_file_is_named_for_an_adapter_that_leaves_out_its_frames(with_frame_file, tmp_path):
    found = qpeft.suggest(BASE, bytes=1000)
    assert (found.label, found.needs_frame_file) == (with_frame_file.label, True)
    assert found.plan.stored_bytes == 2 * found.plan.trainable <= 1000
    assert found.config.store_frames  # otherwise it could not be loaded
    assert all(name in found.notes[-1] for name in ("qpeft frames", "--frames", "fit_frames", "save_to=FILE"))
    base = GPT2LMHeadModel(BASE).eval()
    model = get_peft_model(copy.deepcopy(base), found.config)
    qpeft.fit_frames(model, [{"input_ids": torch.arange(20)[None]}], save_to=tmp_path / "frames")
    qpeft.save(model, tmp_path / "adapter")
    (tensor,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert tensor.nbytes == found.plan.stored_bytes + 8
    qpeft.load(base, tmp_path / "adapter")


def test_same_adapter_stores_its_frames_in_a_budget_of_parameters(with_frame_file):
    found = qpeft.suggest(BASE, parameters=count_trainable(with_frame_file))
    assert (found.label, found.needs_frame_file) == (with_frame_file.label, False)
    assert found.config.store_frames
    assert found.plan == qpeft.plan(BASE, found.config)
    assert found.plan.stored_bytes > 4 * found.plan.trainable
    with_file = qpeft.suggest(BASE, bytes=1000).plan.stored_bytes
    note = f"it stores its frames: {found.plan.stored_bytes:,} bytes, {with_file:,} with a frame file"
    assert found.notes[0].startswith(note)


@pytest.fixture
def frame_file(tmp_path):
    """A frame file of BASE with a given number of directions, and the base."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(BASE).eval()

    def make(frame_rank=4, target_modules="all-linear"):
        config = qpeft.QuantumPeftConfig(
            r=2, n_layers=1, share="type", frame="gradient", frame_rank=frame_rank, target_modules=target_modules
        )
        qpeft.fit_frames(
            get_peft_model(copy.deepcopy(base), config),
            [{"input_ids": torch.arange(20)[None]}],
            save_to=tmp_path / f"{frame_rank}",
        )
        return tmp_path / f"{frame_rank}.safetensors", base

    return make


@pytest.mark.parametrize("stores", [True, False])
def test_frames_in_a_given_file_are_not_counted(with_frame_file, monkeypatch, frame_file, stores, tmp_path):
    """Also of an adapter that was measured with its frames inside: its logits are the same."""
    left = {name: value for name, value in with_frame_file.settings.items() if not stores or name != "store_frames"}
    use_only(monkeypatch, with_frame_file.model_copy(update={"settings": left}))
    file, base = frame_file()
    if stores:
        with pytest.raises(ConfigError, match="bytes 1,000 is too small"):
            qpeft.suggest(BASE, bytes=1000)
    found = qpeft.suggest(BASE, bytes=1000, frames=file)
    assert (found.settings["frames"], found.needs_frame_file) == (str(file), True)
    assert found.plan.stored_bytes == 2 * found.plan.trainable <= 1000
    assert found.plan == qpeft.plan(BASE, found.config)
    assert found.config == qpeft.suggest(BASE, parameters=found.plan.trainable, frames=file).config
    assert "in the evidence they were computed from the training text" in found.notes[-1]
    assert not any("save_to=FILE" in note or "before the first step" in note for note in found.notes)
    model = get_peft_model(copy.deepcopy(base), found.config)
    qpeft.save(model, tmp_path / "adapter")
    (tensor,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert tensor.nbytes == found.plan.stored_bytes + 8


def test_frame_file_of_another_base_is_refused(with_frame_file, frame_file):
    file, base = frame_file()
    wider = GPT2LMHeadModel(GPT2Config(**{**BASE.to_dict(), "n_embd": 2 * BASE.n_embd}))
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.mul_(-1)
    for model, problem in (
        (LLAMA, "this one has no module"),
        (wider.config, "has another shape"),
        (other, "weights differ"),
    ):
        with pytest.raises(CheckpointError, match=f"frames of another base model: .*{problem}"):
            qpeft.suggest(model, parameters=10**6, frames=file)
    for model in (LLAMA, wider.config):  # a plan reads no weights
        with pytest.raises(CheckpointError, match="frames of another base model"):
            qpeft.plan(model, qpeft.QuantumPeftConfig(r=2, frames=str(file)))


def test_frame_file_of_fewer_modules_suits_no_adapter_on_more(with_frame_file, monkeypatch, frame_file):
    few, base = frame_file(target_modules=["c_fc"])
    use_only(monkeypatch, with_frame_file)
    with pytest.raises(ConfigError, match=r"no frames for .*c_attn; write one .* --target-modules c_attn,c_fc,c_proj"):
        qpeft.suggest(BASE, parameters=10**6, frames=few)
    more, _ = frame_file(frame_rank=5, target_modules=["c_attn", "c_fc", "c_proj", "lm_head"])
    found = qpeft.suggest(BASE, parameters=10**6, frames=more)
    assert found.plan == qpeft.plan(BASE, found.config)
    assert not any("lm_head" in name for name in found.plan.target_modules)  # as it was measured
    model = get_peft_model(copy.deepcopy(base), found.config)
    assert model.get_nb_trainable_parameters()[0] == found.plan.trainable


def test_core_needs_as_many_directions_as_its_rank(with_frame_file, monkeypatch, frame_file):
    file, _ = frame_file()
    settings = {"frame": "gradient", "family": "core", "frame_rank": 6, "r": 6, "store_frames": False}
    use_only(monkeypatch, with_frame_file.model_copy(update={"settings": settings}))
    with pytest.raises(ConfigError, match="it needs more directions than the frame file has, frame_rank 6"):
        qpeft.suggest(BASE, parameters=10**6, frames=file)
    core = qpeft.QuantumPeftConfig(family="core", frame_rank=6, r=6, frames=str(file))
    with pytest.raises(ConfigError, match=r"has 4 directions for .*, 6 are needed; use a smaller frame_rank or r"):
        qpeft.plan(BASE, core)


def test_note_names_a_better_adapter_that_the_frame_file_does_not_suit(with_frame_file, monkeypatch, frame_file):
    file, _ = frame_file()
    head = {**with_frame_file.settings, "target_modules": "@linear-and-head"}
    losses = [{seed: loss - 0.5 for seed, loss in result.losses.items()} for result in with_frame_file.results]
    results = [
        result.model_copy(update={"losses": some}) for result, some in zip(with_frame_file.results, losses, strict=True)
    ]
    better = with_frame_file.model_copy(update={"settings": head, "label": "on the head", "results": results})
    use_only(monkeypatch, with_frame_file, better)
    assert qpeft.suggest(BASE, parameters=10**6).label == "on the head"
    found = qpeft.suggest(BASE, parameters=10**6, frames=file)
    assert found.label == with_frame_file.label
    assert found.notes[0].startswith("on the head is better in the evidence and within the budget, but the frame file")
    assert "--target-modules c_attn,c_fc,c_proj,lm_head" in found.notes[0]


def use_only(monkeypatch, *designs):
    found = suggest_module.read_evidence()
    only = found.model_copy(update={"designs": list(designs)})
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: only)


def test_alternatives_refer_to_the_given_frame_file(with_frame_file, monkeypatch, frame_file):
    as_good = with_frame_file.model_copy(update={"key": "~other"})
    use_only(monkeypatch, with_frame_file, as_good)
    file, _ = frame_file()
    (other,) = qpeft.suggest(BASE, bytes=1000, frames=file).alternatives
    assert (other.settings["frames"], other.needs_frame_file) == (str(file), True)


def test_with_a_frame_file_only_adapters_that_it_has_frames_for_are_suggested(with_frame_file, monkeypatch, frame_file):
    file, _ = frame_file()
    assert qpeft.suggest(BASE, parameters=10**6).label == "LoRA r=8"
    assert qpeft.suggest(BASE, parameters=10**6, frames=file).label == with_frame_file.label
    few, _ = frame_file(frame_rank=2)
    use_only(monkeypatch, with_frame_file)
    with pytest.raises(ConfigError, match=r"R=4, r=2: it needs more directions than the frame file has, frame_rank 4"):
        qpeft.suggest(BASE, parameters=10**6, frames=few)
    with pytest.raises(ConfigError, match="there is no frame file"):
        qpeft.suggest(BASE, parameters=10**6, frames=file.with_name("none.safetensors"))
    head = {**with_frame_file.settings, "target_modules": "@linear-and-head"}
    use_only(monkeypatch, with_frame_file.model_copy(update={"settings": head}))
    assert "lm_head" in qpeft.suggest(BASE, parameters=10**6).settings["target_modules"]
    with pytest.raises(ConfigError, match="R=4, r=2: the frame file has no frames for lm_head"):
        qpeft.suggest(BASE, parameters=10**6, frames=file)


def count_trainable(design):
    return qpeft.plan(BASE, qpeft.QuantumPeftConfig(**design.settings, target_modules="all-linear")).trainable


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one budget, parameters or bytes"),
        ({"parameters": 10, "bytes": 10}, "give one budget"),
        ({"parameters": 0}, "parameters must be an integer of at least 1, got 0"),
        ({"bytes": 1.5}, "bytes must be an integer of at least 1, got 1.5"),
        (
            {"parameters": 63},
            "parameters 63 is too small: the smallest .*, Uni-LoRA, 64, has 64 trainable parameters",
        ),
    ],
)
def test_invalid_budget_is_refused(evidence, asked, message):
    with pytest.raises(ConfigError, match=message):
        qpeft.suggest(BASE, **asked)


def test_model_with_an_adapter_is_refused(evidence):
    model = get_peft_model(GPT2LMHeadModel(BASE), LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="has an adapter already; give the model without it"):
        qpeft.suggest(model, parameters=1000)
    with pytest.raises(ConfigError, match="has an adapter already; give the model without it"):
        qpeft.plan(model, LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM"))


def test_unknown_base_is_refused(evidence, tmp_path):
    with pytest.raises(ConfigError, match="no model at"):
        qpeft.suggest(tmp_path / "nowhere", parameters=100)


def test_packaged_evidence_is_that_of_the_published_results(script):
    assert read_evidence() == script.evidence()


@pytest.fixture(scope="module")
def published():
    """Test losses by seed, and trainable parameters, of each trained method in each published folder of `budgets`."""
    found = {}
    for path in sorted((ROOT / "docs" / "results").glob("*/budgets/rows.jsonl")):
        losses, trainable = found[path.parent.parent.name] = defaultdict(dict), {}
        for row in map(json.loads, path.read_text().splitlines()):
            if row["status"] == "success" and row["seed"] in range(5) and "test_loss" in row["quality"]:
                losses[row["label"]][row["seed"]] = row["quality"]["test_loss"]
                trainable[row["label"]] = row["cost"]["params_trainable"]
    return found


def test_suggested_learning_rates_lie_below_those_that_failed_in_the_published_rows():
    """Computed from the rows: no trial with the suggested or the next learning rate lost two fifths of the gain."""
    found = {}
    for path in sorted((ROOT / "docs" / "results").glob("*/budgets/rows.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        untrained = next(row["quality"]["valid_loss"] for row in rows if row["method"] == "none")
        for row in rows:
            if row["role"] == "tuning":
                loss = row["quality"].get("valid_loss") if row["status"] == "success" else None
                trials = found.setdefault(row["method"], {}).setdefault(path, {})
                trials[row["train"]["lr"]] = untrained if loss is None else loss
        for trials in (of_path[path] for of_path in found.values()):
            best = min(trials.values())
            trials.update({lr: (loss - best) / (untrained - best) for lr, loss in trials.items()})
    evidence = read_evidence()
    for design in evidence.designs:
        if "FourierFT" in design.label:  # no two neighbors of its grid are good in all setups
            continue
        lr = evidence.learning_rate(design)
        for trials in found[design.key].values():
            following = min(other for other in trials if other > lr)
            assert max(trials[lr], trials[following]) < 0.4, design.label


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
    found = qpeft.suggest(base or qpeft.demo.base_path(), parameters=parameters)
    assert found.label == best
    assert found.share == pytest.approx(shares[best], abs=1e-5)
    assert found.plan.trainable == trainable[best]
    assert not any("more than the budget" in note for note in found.notes)


@pytest.mark.parametrize("parameters", [64, 300, 5000])
def test_all_published_rows_count_for_another_base(published, parameters):
    shares = _shares(published.values())
    found = qpeft.suggest(BASE, parameters=parameters)
    assert found.share == pytest.approx(shares[found.label], abs=1e-5)
    assert all(shares[other.label] <= found.share for other in found.alternatives)
    measured = max(trainable[found.label] for _, trainable in published.values())
    assert any("more than the budget" in note for note in found.notes) == (measured > parameters)


@pytest.mark.parametrize(
    ("settings", "servers"),
    [({}, []), ({"modules_to_save": "@norms"}, ["vLLM", "TRL's"]), ({"target_modules": "@linear-and-head"}, ["TRL's"])],
    ids=str,
)
def test_note_names_the_servers_that_do_not_load_the_export(monkeypatch, settings, servers):
    setup = one_setup(10**6)
    result = Result(trainable=9, lr=0.1, losses={0: 3.5}, tuning=TUNING)
    only = Design(key="k", label="ours", method="quantum_peft", settings={"r": 1, **settings}, results=[result])
    found = Evidence(study="s", made_by="m", reference="r", setups=[setup], designs=[only])
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: found)
    notes = qpeft.suggest(BASE, parameters=5000).notes
    assert [note.partition(" ")[0] for note in notes if "does not load its export" in note] == servers
    some = "vLLM loads its export for some models only: it adapts the output head or the embedding"
    assert (some in notes) == (servers == ["TRL's"])
    if servers:
        with pytest.raises(ConfigError, match=f"the first reason is: ours: {servers[0]}.* does not load its export"):
            qpeft.suggest(BASE, parameters=5000, stock_servers=True)
    else:
        assert qpeft.suggest(BASE, parameters=5000, stock_servers=True).label == "ours"


@pytest.mark.parametrize(
    ("method", "settings", "word"),
    [
        ("quantum_peft", {"r": 1, "target_modules": "@linear-and-head"}, None),
        ("quantum_peft", {"r": 1, "modules_to_save": "@norms"}, "LayerNorm"),
        ("qpa", {"r": 1, "use_dora": True}, "DoRA"),
        ("lora", {"r": 1}, "LORA"),
        ("uni_lora", {"r": 4, "theta_d_length": 64}, "UNILORA"),
    ],
    ids=str,
)
def test_note_says_if_a_pool_does_not_mix_the_adapter(monkeypatch, method, settings, word):
    result = Result(trainable=9, lr=0.1, losses={0: 3.5}, tuning=TUNING)
    only = Design(key="k", label="ours", method=method, settings=settings, results=[result])
    found = Evidence(study="s", made_by="m", reference="r", setups=[one_setup(10**6)], designs=[only])
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: found)
    notes = [note for note in qpeft.suggest(BASE, parameters=10**5).notes if "AdapterPool" in note]
    if word is None:
        assert not notes
        assert qpeft.suggest(BASE, parameters=10**5, mixed_batches=True).label == "ours"
    else:
        assert word in notes[0]
        with pytest.raises(ConfigError, match=f"the first reason is: ours: .*{word}"):
            qpeft.suggest(BASE, parameters=10**5, mixed_batches=True)


def test_a_pool_serves_what_is_suggested_for_mixed_batches(tmp_path):
    """With the published evidence, whose best adapter of this size is a LoRA."""
    base = GPT2LMHeadModel(BASE).eval()
    best = qpeft.suggest(base, parameters=800)
    found = qpeft.suggest(base, parameters=800, mixed_batches=True)
    assert any("AdapterPool" in note for note in best.notes)
    assert found.share < best.share
    for name in "ab":
        model = get_peft_model(copy.deepcopy(base), found.config)
        qpeft.fit_frames(model, [{"input_ids": torch.arange(20)[None]}])
        qpeft.save(model, tmp_path / name)
    pool = qpeft.AdapterPool(base, tmp_path)
    pool.model(input_ids=torch.arange(20).view(2, 10), adapter_names=pool.place(["a", "b"]))


def test_note_on_a_larger_base_and_on_the_end_of_the_evidence(monkeypatch):
    result = Result(trainable=9, lr=0.1, losses={0: 3.5}, tuning=TUNING)
    only = Design(key="k", label="LoRA", method="lora", settings={"r": 1}, results=[result])
    found = Evidence(study="s", made_by="m", reference="r", setups=[one_setup(10)], designs=[only])
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: found)
    notes = qpeft.suggest(BASE, parameters=512).notes
    assert notes[0].startswith("the largest base of the evidence has 10 parameters, this one ")
    assert notes[1] == "the evidence ends at 9 trainable parameters"
