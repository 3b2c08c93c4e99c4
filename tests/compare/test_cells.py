"""Plans and cells on a tiny model: equal data and order, budgets, the best parameters, one row
each.
"""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import gpt2, llama, save_base
from transformers import AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from qpeft import methods as methods_table
from qpeft.backends import ExactBackend
from qpeft.errors import CheckpointError, ConfigError, DataError, InputError
from qpeft_lab.base_model import fingerprint
from qpeft_lab.compare import cell as cell_module
from qpeft_lab.compare.cell import (
    data_as_json,
    failed_row,
    read_ahead,
    read_data,
    run_cell,
    settings_of,
    settings_of_data,
    started_row,
    untrained_model,
    work_folder,
)
from qpeft_lab.compare.cell_progress import read_progress
from qpeft_lab.compare.forecast import Speed, forecast, seconds_of, speed_of
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.rows import RowFile, read_rows
from qpeft_lab.compare.study import load_study, read_study
from qpeft_lab.compare.summary import summarise
from qpeft_lab.training.hidden_states import keep_hidden_states
from qpeft_lab.training.outputs import count_deployed, count_trainable
from qpeft_lab.training.tasks import TASK_CLASSES
from studies import of_run

METHODS = [
    {"key": "none", "method": "none"},
    {"key": "lora", "method": "lora", "settings": {"r": 2}, "lr": 0.01},
    {"key": "full", "method": "full", "lr": 0.003},
    {"key": "dora", "method": "dora", "settings": {"r": 2}, "lr": 0.01},
    {"key": "sora", "method": "sora", "settings": {"r": 2}, "lr": 0.01},
    {"key": "ia3", "method": "ia3", "lr": 0.01},
    {"key": "prefix", "method": "prefix", "settings": {"num_virtual_tokens": 3}, "lr": 0.01},
    {"key": "qpa", "method": "qpa", "settings": {"r": 8, "budget": 0.5}, "lr": 0.001},
    {"key": "qaa", "method": "qaa", "lr": 0.01},
    {"key": "quantum_peft", "method": "quantum_peft", "settings": {"r": 4}, "lr": 0.01},
]
SMALL = of_run(steps=6, batch_size=2, seq_len=32, eval_every=3, eval_blocks=4)
SMALL |= {"methods": METHODS, "generation": None, "test_blocks": 4, "seeds": [0, 1, 2]}


@pytest.fixture
def study(tiny_model, text_file):
    def make(**changes):
        return load_study(
            "survey", {**SMALL, "run.model": str(tiny_model), "run.data": str(text_file), **changes}
        )

    return make


def cells_of(plan, *keys, seed=0):
    """Final cells at the lowest learning rate of the grid, without trials."""
    return [
        replace(cell, lr=(cell.spec.rates or [None])[0])
        for cell in plan.final_cells({})
        if cell.method in keys and cell.seed == seed
    ]


@pytest.fixture
def planned(study, tmp_path):
    """A plan, and the cells of these methods in it."""

    def make(*keys, **changes):
        plan = make_plan(study(**changes), tmp_path / "out")
        return plan, *cells_of(plan, *keys)

    return make


def test_cost_of_a_study_with_few_examples_is_that_of_all(study, tmp_path, monkeypatch):
    plan = make_plan(study(**{"run.batch_size": 15}), tmp_path / "out")
    measured = []
    monkeypatch.setattr(
        cell_module, "measure_cost", lambda batches, **_: measured.extend(batches) or {}
    )
    cell = plan.cost_cells({})[-1]
    cell_module._cost(cell)
    sizes = [len(batch["input_ids"]) for batch in measured]
    assert 1 < len(sizes) < 8
    assert sum(sizes) == len(read_data(settings_of(cell)).train)


def test_plan_counts_methods_and_writes_nothing(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()

    plan.claim()
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    assert read_study(plan.folder) == plan.study

    by_key = {method["key"]: method for method in written["methods"]}
    assert by_key["none"]["trainable"] == 0
    # a rank-2 LoRA on the four linear maps of each of two layers of width 16
    assert by_key["lora"]["trainable"] == 2 * 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
    assert by_key["qpa"]["trainable"] <= 4 * by_key["lora"]["trainable"] / 2  # half of rank 8
    assert by_key["lora"]["rates"] == [0.003, 0.01, 0.03, 0.1]
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    assert len(plan.tuning_cells({})) == 4 * (len(METHODS) - 1)

    cells = plan.final_cells({})
    assert len(cells) == 3 * (len(METHODS) - 1) + 1  # the base needs no second seed
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)

    sizes = [cell.spec.trainable for cell in cells if cell.seed == 0]
    assert sizes == sorted(sizes)


def test_forecast_counts_steps_and_scored_blocks(planned):
    plan, none, lora = planned("lora", "none")  # small ones first
    trial = next(cell for cell in plan.tuning_cells({}) if cell.method == "lora")
    cost = next(cell for cell in plan.cost_cells({}) if cell.method == "lora")
    speed = Speed(start=1000.0, step=1.0, example=0.01)
    evaluation, test = (0.01 * len(read_data(part).evaluation) for part in settings_of_data(lora))

    assert min(evaluation, test) > 0.01
    # six steps and three evaluations
    assert seconds_of(trial, speed) == pytest.approx(1000 + 6 + 3 * evaluation)
    assert seconds_of(lora, speed) == pytest.approx(1000 + 6 + 3 * evaluation + test)
    assert seconds_of(none, speed) == pytest.approx(1000 + evaluation + test)
    assert seconds_of(cost, speed) == pytest.approx(2 * 1000 + 3 * 35)
    assert forecast(plan, speed) == pytest.approx(
        sum(seconds_of(cell, speed) for cell in plan.cells({}))
    )

    measured = speed_of(plan)
    assert measured.step > measured.example > 0


def test_plan_of_epochs_has_their_steps(tiny_model, text_file, tmp_path):
    asked = {
        "run.model": str(tiny_model),
        "run.data": str(text_file),
        "methods": METHODS[:2],
        "run.epochs": 2.5,
    }
    asked |= {name: value for name, value in SMALL.items() if name not in ("methods", "run.steps")}
    plan = make_plan(load_study("survey", asked | {"run.lr_schedule": "cosine"}), tmp_path / "out")
    [row] = map(json.loads, Path(plan.setup.run.data).read_text().splitlines())
    n_blocks = len(AutoTokenizer.from_pretrained(tiny_model)(row["text"])["input_ids"]) // 32
    [cell] = cells_of(plan, "lora")

    assert (
        plan.setup.run.n_steps == plan.study.run.steps == math.ceil(2.5 * math.ceil(n_blocks / 2))
    )
    assert settings_of(cell, tmp_path).lr_schedule == "cosine"


def test_learning_rate_with_the_lowest_loss_is_chosen(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    rows = {
        cell.cell_id: failed_row(cell, RuntimeError("planted")) for cell in plan.tuning_cells({})
    }
    for cell in plan.tuning_cells({}):
        if cell.method == "lora":
            rows[cell.cell_id] = {
                **started_row(cell),
                "status": "success",
                "valid_loss": 1 / cell.lr,
            }
    finals = {cell.method: cell for cell in plan.final_cells(rows) if cell.seed == 0}

    assert finals["lora"].lr == 0.1
    assert finals["qpa"].lr == min(finals["qpa"].spec.rates)  # no trial succeeded
    assert finals["none"].lr is None


def test_cell_whose_base_changed_since_the_plan_is_refused(tmp_path, planned):
    base = save_base(tmp_path / "base", llama(vocab_size=257))
    plan, cell = planned("none", **{"run.model": str(base), "run.seq_len": 16})
    row = run_cell(cell, plan.folder)
    other = llama(vocab_size=257)
    other.lm_head.weight.data += 1.0
    save_base(base, other)
    with pytest.raises(ConfigError, match="base changed since the study was planned; restore it"):
        run_cell(cell, plan.folder)
    assert row["status"] == "success"


def test_cell_whose_files_changed_since_the_plan_is_refused(study, tmp_path):
    (file := tmp_path / "during.py").write_text(
        "from qpeft.circuits import Gate, register_ansatz\n"
        "gates = [Gate('ry', (wire,), (0, wire)) for wire in range(2)]\n"
        "register_ansatz('during', lambda n, m: (1, 2), lambda n, m: [gates])\n"
    )
    settings = {"r": 2, "ansatz": f"{file}:during", "n_layers": 1, "features": 2, "chunk_size": 800}
    qpa = [{"key": "qpa", "method": "qpa", "settings": settings}]
    plan = make_plan(study(methods=[METHODS[1], *qpa]), tmp_path / "out")
    file.write_text(file.read_text() + "# edited")
    del sys.modules["during"]  # a cell's process has not executed it
    for cell in (*cells_of(plan, "qpa"), plan.cost_cells({})[-1]):
        assert cell.method == "qpa"
        with pytest.raises(ConfigError, match=r"during\.py.* changed since the study was planned"):
            run_cell(cell, plan.folder)


def test_hash_depends_on_what_determines_the_rows(study, tmp_path, text_file, tiny_model):
    before = {
        method.key: method.hash for method in make_plan(study(), tmp_path / "a").study.methods
    }
    moved = {
        "run.model": str(shutil.copytree(tiny_model, tmp_path / "base")),
        "run.data": str(tmp_path / "copy.txt"),
    }
    shutil.copy(text_file, moved["run.data"])

    assert {
        method.key: method.hash
        for method in make_plan(study(**moved), tmp_path / "m").study.methods
    } == before

    changed = {"lora": {"settings": {"r": 3}}, "qpa": {"backend": {"shots": 9}}}
    other = [{**method, **changed.get(method["key"], {})} for method in METHODS]
    after = {m.key: m.hash for m in make_plan(study(methods=other), tmp_path / "b").study.methods}

    assert {key for key in before if before[key] != after[key]} == {*changed}

    (other := tmp_path / "other.txt").write_text(text_file.read_text() + " more")
    for change in (
        {"run.steps": 7},
        {"test_blocks": 2},
        {"tuning.grid": [1.0]},
        {"lr_scale": 2.0},
        {"run.data": str(other)},
        {"generation": {"num_beams": 2}},
    ):
        changed_methods = make_plan(study(**change), tmp_path / "c").study.methods
        same = {method.key for method in changed_methods if before[method.key] == method.hash}
        assert same <= ({"none"} if change.keys() <= {"tuning.grid", "lr_scale"} else set()), change


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's, for norms
def test_block_uses_the_largest_size_within_the_budget(study, tmp_path):
    sizes = {"key": "lora@prefix", "method": "lora", "vary": "r", "values": [1, 2, 3, 4, 5]}
    tight = {
        "key": "prefix@prefix",
        "method": "prefix",
        "vary": "num_virtual_tokens",
        "values": [40],
    }
    exact = {"key": "qpa@prefix", "method": "qpa", "settings": {"r": 4, "budget": "@budget"}}
    methods = [{**method, "at_size_of": "prefix"} for method in (sizes, tight, exact)]
    methods += [
        *METHODS[:2],
        {"key": "prefix", "method": "prefix", "settings": {"num_virtual_tokens": 30}},
        {"key": "gains", "method": "ln_tuning", "settings": {"target_modules": "@last-norm"}},
    ]
    plan = make_plan(study(methods=methods, **{"run.seq_len": 16}), tmp_path / "out")
    found = {method.key: method.trainable for method in plan.study.methods}

    assert plan.study.methods[-1].settings == {"target_modules": ["transformer.ln_f"]}

    budget = 30 * 2 * 16 * 2
    assert found["prefix"] == budget
    assert found["lora@prefix"] == 3 * 2 * 256 <= budget
    assert found["prefix@prefix"] > budget
    assert 0.8 <= found["qpa@prefix"] / budget <= 1


@pytest.mark.long
def test_data_order_and_initial_loss_are_equal_for_all_methods(study, tmp_path, monkeypatch):
    plan = make_plan(study(), tmp_path / "out")
    seen = []
    task = read_data(settings_of(plan.final_cells({})[0]))
    collate = task.collate

    def with_record(examples):
        seen.append([id(example) for example in examples])
        return collate(examples)

    monkeypatch.setattr(type(task), "collate", staticmethod(with_record))

    def run(cell):
        seen.clear()
        row = run_cell(cell, plan.folder)
        return row, list(seen)

    found = {
        cell.method: run(cell) for cell in cells_of(plan, *(method["key"] for method in METHODS))
    }
    orders = {key: order for key, (_, order) in found.items() if key not in ("none", "prefix")}

    assert len({repr(order) for order in orders.values()}) == 1
    assert run(cells_of(plan, "lora", seed=1)[0])[1] != orders["lora"]

    starts = {key: row["curve"][0][1] for key, (row, _) in found.items()}
    base = starts.pop("none")
    assert abs(starts.pop("prefix") - base) > 1e-4
    assert starts.pop("dora") == pytest.approx(base, abs=1e-5)
    assert starts.pop("quantum_peft") == pytest.approx(base, abs=1e-5)
    assert starts.pop("qpa") == pytest.approx(base, abs=1e-2)  # A and B are small, not zero
    assert set(starts.values()) == {base}


def test_row_has_the_fields_of_the_specification(planned):
    plan, cell = planned("qpa")
    row = run_cell(cell, plan.folder)
    assert row["status"] == "success"
    assert [point[0] for point in row["curve"]] == [0, 3, 6]
    assert {
        "lr",
        "seconds",
        "valid_loss",
        "test_loss",
        "test_ppl",
        "bits_per_byte",
        "best_step",
    } <= row.keys()
    assert row["params_trainable"] == row["params_generator"] < row["params_deployed"]
    assert row["test_scored"] > 0
    assert min(row["test_losses"]) < row["test_loss"] < max(row["test_losses"])
    assert 1 <= row["rank_effective"] <= row["rank_numerical"] <= 8

    most = 6 * row["lr"]  # radians: six steps of Adam, which moves an angle by one learning rate
    assert 0 < row["angles_moved"] < row["angles_moved_most"] < 1.01 * most
    assert json.dumps(row, allow_nan=False)

    reached = read_progress(work_folder(cell, plan.folder))
    assert reached.what == "Measuring the adapter"
    assert reached.step == 6
    assert reached.steps == 6


def test_stored_bytes_of_an_adapter_in_gradient_frames_are_those_with_a_frame_file(planned):
    settings = {
        "r": 2,
        "frame": "gradient",
        "frame_rank": 4,
        "share": "type",
        "bits": 16,
        "lambda_bits": 16,
    }
    methods = [{"key": "framed", "method": "quantum_peft", "settings": settings, "lr": 0.01}]
    plan, cell = planned("framed", methods=methods, reference="framed")
    row = run_cell(cell, plan.folder)

    assert 0 < row["bytes_stored"] - 2 * row["params_trainable"] < 200  # one tensor


CIRCUITS = {
    "r": 8,
    "chunk_size": 80,
    "hidden": [4, 8],
    "n_layers": 2,
    "activation": "identity",
    "angle_scale": 50,
}
SHOTS = {
    "key": "shots",
    "method": "qpa",
    "settings": CIRCUITS,
    "lr": 0.001,
    "backend": {"shots": 400},
}


def test_hardware_jobs_are_counted_and_not_sent_for_times(planned, tmp_path, monkeypatch):
    sent = []
    run = ExactBackend.run
    monkeypatch.setattr(ExactBackend, "is_simulator", False)
    monkeypatch.setattr(
        ExactBackend, "run", lambda self, *given: sent.append(given) or run(self, *given)
    )
    plan, cell = planned("shots", methods=[SHOTS], reference="shots")
    cost = replace(plan.cost_cells({})[0], lr=0.001)

    times = run_cell(cost, plan.folder)
    assert times["step_ms"] > 0
    assert times["reference"] == plan.setup.reference.hash
    assert not sent

    row = run_cell(cell, plan.folder)
    assert row["circuits"]["jobs"] == len(sent) > 0
    assert settings_of(cell, tmp_path).save_every is None


def test_parameters_with_the_lowest_validation_loss_are_tested(planned):
    # the learning rate is so high that the last evaluation is worse than an earlier one
    plan, cell = planned("lora", **{"run.eval_every": 1})
    row = run_cell(replace(cell, lr=0.5), plan.folder)
    curve = [(step, loss) for step, loss, _ in row["curve"]]
    assert row["best_step"] == min(curve, key=lambda point: point[1])[0] < 6
    assert row["valid_loss"] == min(loss for _, loss in curve)


def test_non_finite_loss_gives_status_diverged(planned, monkeypatch):
    plan, cell = planned("full")
    row = run_cell(replace(cell, lr=1e30), plan.folder)
    assert row["status"] == "diverged"
    assert row["error"]
    monkeypatch.setattr(cell_module, "_measured", lambda *_: {"test_loss": math.nan})
    assert run_cell(cell, plan.folder)["status"] == "diverged"


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"run.model": "./no/model"}, InputError, "no model folder"),
        ({"run.data": "nothing.txt"}, DataError, "no file or folder"),
        (
            {"bad": {"method": "qpa", "settings": {"budget": 3}}},
            ConfigError,
            "method bad: .*too small",
        ),
        ({"bad": {"method": "lora", "settings": {"rank": 3}}}, ConfigError, "'rank'"),
        ({"bad": {"method": "head"}}, ConfigError, "method bad: .*which task causal-lm lacks"),
        (
            {"bad": {"method": "full"}, "run.dtype": "bfloat16"},
            ConfigError,
            "method bad: .*use dtype float32",
        ),
        (
            {"bad": {"method": "lora", "at_size_of": "none"}},
            ConfigError,
            "none trains no parameters",
        ),
        (
            {"generation": {"bertscore_model": "no/encoder"}},
            ConfigError,
            "bertscore_model: no folder",
        ),
    ],
)
def test_invalid_studies_are_rejected_before_any_cell(study, tmp_path, changes, error, message):
    bad = changes.pop("bad", None)
    methods = METHODS[:2] + ([{"key": "bad", **bad}] if bad else [])
    with pytest.raises(error, match=message):
        make_plan(study(methods=methods, **changes), tmp_path / "out")


def test_head_of_a_classification_is_not_counted(planned, tmp_path, tiny_vit, bar_files):
    """Whatever number of classes the base has, and with targets that would match the head."""
    settings = {
        "lora": {"r": 4, "target_modules": "all-linear"},
        "qpa": {"r": 4, "budget": 0.5},
        "full": {},
    }
    methods = [
        {"key": key, "method": key, "settings": own, "lr": 0.01} for key, own in settings.items()
    ]
    asked = of_run(model=str(tiny_vit), data=str(bar_files[0]), task="image-classification")
    plan, *_ = planned(**asked, methods=methods, reference="lora")
    for method in plan.study.methods:
        [cell] = cells_of(plan, method.key)
        model = untrained_model(cell)
        task = read_data(settings_of(cell, tmp_path))
        assert method.trainable == count_trainable(model) - count_trainable(model, task.head), (
            method.key
        )
        assert method.deployed == count_deployed(model) - count_trainable(model, task.head), (
            method.key
        )


def test_answers_to_test_prompts_are_scored(planned, tmp_path):
    data = tmp_path / "pairs.csv"
    lines = [
        f'"name[the {n // 2} bird], area[wood]","the bird number {n // 2} sings in the wood"'
        for n in range(120)
    ]
    data.write_text("mr,ref\n" + "\n".join(lines) + "\n")
    columns = {"run.prompt_column": "mr", "run.completion_column": "ref", "run.seq_len": 61}
    asked = {
        "run.data": str(data),
        "generation": {"max_new_tokens": 5, "n_prompts": 2},
        "metric": "bleu",
        **columns,
    }
    plan, cell = planned("lora", **asked)
    row = run_cell(cell, plan.folder)

    assert len(row["texts"]) == 2
    assert row["bleu_signature"].startswith("nrefs:2|")
    assert 0 <= row["bleu"] <= 100
    assert 0 <= row["rougeL"] <= 1
    assert 0 <= row["chrf"] <= 100
    assert row["bertscore_f1"] is None


def test_each_seed_and_the_trials_have_their_own_random_projections(planned):
    fields = {
        "uni_lora": "proj_seed",
        "tiny_lora": "projection_seed",
        "fixed": "projection_prng_key",
    }
    methods = [
        {
            "key": "uni_lora",
            "method": "uni_lora",
            "settings": {"r": 2, "theta_d_length": 64},
            "lr": 0.01,
        },
        {"key": "tiny_lora", "method": "tiny_lora", "lr": 0.01},
        {"key": "fixed", "method": "vera", "settings": {"projection_prng_key": 7}, "lr": 0.01},
    ]
    plan, *_ = planned(methods=methods, reference="fixed")
    found = {key: set() for key in fields}
    for cell in (*plan.tuning_cells({}), *plan.final_cells({})):
        config = untrained_model(cell).peft_config["default"]
        found[cell.method].add((cell.seed, getattr(config, fields[cell.method])))
    steps = {key: methods_table.get(key).seed_step for key in ("uni_lora", "tiny_lora")}

    assert steps["tiny_lora"] > 8  # a seed for each module

    for key, seeds in found.items():
        assert seeds == {
            (seed, 7 if key == "fixed" else seed * steps[key]) for seed in (0, 1, 2, 1000)
        }, key


def test_virtual_tokens_shorten_the_blocks_of_all_methods(planned):
    plan, *cells = planned("lora", "prefix", **{"run.seq_len": None})
    assert plan.study.run.seq_len == 64 - 3
    rows = [run_cell(cell, plan.folder) for cell in cells]
    assert len({row["test_scored"] for row in rows}) == 1


def test_prompts_that_are_too_long_are_named_in_the_row_and_the_report(planned, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"{n} " + "the bird sings " * (30 * (n % 3 == 0)), "completion": "at night"}
        for n in range(60)
    ]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    plan, cell = planned("none", **{"run.data": str(data)})
    plan.claim()
    row = run_cell(cell, plan.folder)
    for text, share in zip(row["left_out"], ("18 of 54", "1 of 3", "1 of 3"), strict=True):
        assert text.startswith(f"{share} rows of ")
    RowFile(plan.folder).append(row)

    assert f"{row['left_out'][0]}." in summarise(plan.study, read_rows(plan.folder)).limits


def test_folder_of_other_work_is_rejected(study, tmp_path, text_file):
    plan, other = (make_plan(study(name=name), tmp_path / "out") for name in ("survey", "other"))
    plan.claim()
    plan.claim()

    with pytest.raises(ConfigError, match="'survey'"):
        other.claim()

    (longer := tmp_path / "longer.txt").write_text(text_file.read_text() + " more")
    make_plan(study(**{"run.data": str(longer)}), tmp_path / "out")  # nothing has been trained
    RowFile(plan.folder).append({**started_row(cells_of(plan, "lora")[0]), "status": "success"})

    with pytest.raises(ConfigError, match="other data"):
        make_plan(study(**{"run.data": str(longer)}), tmp_path / "out")

    make_plan(study(methods=METHODS[:3], seeds=[0, 1, 2, 3]), tmp_path / "out")
    (tmp_path / "out" / "study.json").write_text('{"schema": 1')
    with pytest.raises(CheckpointError, match="damaged"):
        make_plan(study(), tmp_path / "out")

    (tmp_path / "out" / "study.json").unlink()
    assert make_plan(study(), tmp_path / "out").study == plan.study

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_plan(study(), tmp_path / "mine")


@pytest.fixture
def planted_reads(monkeypatch):
    """The settings of each reading of data, from an empty cache."""
    reads = []
    task_class = TASK_CLASSES["causal-lm"]

    def counted(settings, *more):
        reads.append(settings)
        return task_class(settings, *more)

    monkeypatch.setitem(TASK_CLASSES, "causal-lm", counted)
    monkeypatch.setattr(cell_module, "_READ", {})
    return reads


def test_data_are_read_ahead_for_all_cells(planted_reads, planned):
    """From the text that the process gets from which cells are forked."""
    _, lora, qpa = planned("lora", "qpa")
    read_ahead(data_as_json(lora))
    n_read = len(planted_reads)

    assert n_read == 2  # training with validation data, and test data

    for cell in (lora, qpa, replace(lora, seed=7)):
        for settings in settings_of_data(cell):
            read_data(settings)
    assert len(planted_reads) == n_read


def test_cells_that_adapt_upper_layers_share_the_hidden_states_of_those_below(
    planned, tmp_path, monkeypatch
):
    base = save_base(tmp_path / "base", llama(vocab_size=257, tie_word_embeddings=True))
    head = {"r": 2, "target_modules": ["lm_head"], "lora_dropout": 0.1}
    upper = {"r": 1, "target_modules": ["q_proj"], "layers_to_transform": [1]}
    methods = [
        {"key": "none", "method": "none"},
        {"key": "lora", "method": "lora", "settings": head, "lr": 0.01},
        {"key": "qpa", "method": "qpa", "settings": {**head, "r": 4}, "lr": 0.001},
        {"key": "upper", "method": "lora", "settings": upper, "lr": 0.01},
        {"key": "all", "method": "lora", "settings": {"r": 1}, "lr": 0.01},
        {"key": "full", "method": "full", "lr": 0.003},
    ]
    run = {"run.model": str(base), "methods": methods, "reference": "lora"}
    keys = [method["key"] for method in methods]
    _, *usual = planned(*keys, **run)
    plan, *sharing = planned(*keys, **run, keep_hidden_states=True)
    computed = []
    compute = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer, "forward", lambda *a, **k: computed.append(0) or compute(*a, **k)
    )

    def passes(cell):
        computed.clear()
        row = run_cell(cell, plan.folder)
        shutil.rmtree(work_folder(cell, plan.folder), ignore_errors=True)
        return len(computed), {name: row[name] for name in ("test_loss", "test_losses", "curve")}

    news = {}
    for plain, shared in zip(usual, sharing, strict=True):
        n_plain, expected = passes(plain)
        n_shared, measured = passes(shared)
        for row in (expected, measured):  # seconds
            row["curve"] = [point[:2] for point in row["curve"]]
        assert measured == expected
        news[shared.method] = n_plain, n_shared

    # two layers; 4 batches of validation and test blocks, then those of 6 steps
    assert news == {
        "none": (8, 8),
        "qpa": (28, 12),
        "lora": (28, 0),
        "upper": (28, 24),  # its upper layer each time, and the lower one
        "all": (28, 28),
        "full": (28, 28),
    }

    for path in (plan.folder / "work" / "hidden_states").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert passes(sharing[0])[0] == 8  # damaged files are computed again
    save_base(base, llama(vocab_size=257, tie_word_embeddings=True, num_attention_heads=1))
    setup = replace(plan.setup, base_sha256=fingerprint(str(base)))
    assert passes(replace(sharing[0], setup=setup))[0] == 8  # and those of another base


def test_hidden_states_of_a_body_that_gets_tokens_by_position_are_kept(tmp_path):
    """As GPT-2's head gives them."""
    model = gpt2().eval().requires_grad_(False)
    ids = torch.randint(0, 50, (2, 7))
    expected = model(input_ids=ids).logits
    keep_hidden_states(model, tmp_path)
    blocks = model.transformer.h
    blocks[-1].attn.c_attn.weight.requires_grad_(True)  # the lower ones are kept
    for _ in range(2):
        assert torch.equal(model(input_ids=ids).logits, expected)
    (kept,) = tmp_path.rglob("*.safetensors")
    assert kept.name.endswith(f"-{len(blocks) - 1}.safetensors")
