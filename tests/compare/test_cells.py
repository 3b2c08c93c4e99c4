"""Plans and cells on a tiny model: equal data and order, budgets, the best parameters, one row each."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from qpeft import methods
from qpeft.backends import ExactBackend
from qpeft.compare import estimate
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.cell import Setup, SplitData, failed_row, started_row, tidy, work_folder
from qpeft.compare.cell_run import run_cell, settings_of, untrained_model
from qpeft.compare.measurements import speed
from qpeft.compare.plan import config_hash, make_plan
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Base, Quality, RowFile, read_rows
from qpeft.compare.study import Generation, MethodSpec, Training
from qpeft.compare.study_file import load_study
from qpeft.errors import CheckpointError, ConfigError, DataError, InputError
from qpeft.methods import registry
from qpeft.training.outputs import count_deployed, count_trainable

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
SMALL = {
    "methods": METHODS,
    "blocks": [],
    "generation": None,
    "training.steps": 6,
    "training.batch_size": 2,
    "training.seq_len": 32,
    "training.eval_every": 3,
    "training.eval_blocks": 4,
    "test_blocks": 4,
    "seeds": [0, 1, 2],
}


@pytest.fixture
def study(tiny_model, text_file):
    def make(**changes):
        return load_study("survey", {**SMALL, "base": str(tiny_model), "data": str(text_file), **changes})

    return make


def changed(cell, **fields):
    return cell.model_copy(update=fields)


def cells_of(plan, *keys, seed=0):
    """Final cells at the lowest learning rate of the grid, without trials."""
    return [
        changed(cell, impossible=None, lr=(cell.spec.rates or [None])[0])
        for cell in plan.final_cells({})
        if cell.method in keys and cell.seed == seed
    ]


def test_plan_counts_methods_and_writes_nothing(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()
    plan.study.write(plan.folder)
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    assert written == plan.study.model_dump()
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


def test_plan_of_epochs_has_their_steps(tiny_model, text_file, tmp_path):
    asked = {"base": str(tiny_model), "data": str(text_file), "methods": METHODS[:2], "training.epochs": 2.5}
    asked |= {name: value for name, value in SMALL.items() if name not in ("methods", "training.steps")}
    plan = make_plan(load_study("survey", asked | {"training.lr_schedule": "cosine"}), tmp_path / "out")
    [row] = map(json.loads, (tmp_path / "out" / "data" / "train.jsonl").read_text().splitlines())
    n_blocks = len(AutoTokenizer.from_pretrained(tiny_model)(row["text"])["input_ids"]) // 32
    [cell] = cells_of(plan, "lora")
    assert cell.steps == plan.study.training.steps == math.ceil(2.5 * math.ceil(n_blocks / 2))
    assert started_row(cell).train.schedule == "cosine decay after 6% warm-up"


def test_study_file_stores_what_a_report_needs_of_a_method_in_a_file(study, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    name = f"{tmp_path / 'mine.py'}:METHOD"
    record = replace(methods.get("lora"), kind="quantum", prunes_ranks=True, report_note="A note.")
    monkeypatch.setitem(registry._from_files, name, record)
    plan = make_plan(study(methods=[METHODS[1], {"key": "mine", "method": name}]), tmp_path / "out")
    plan.study.write(plan.folder)
    assert started_row(plan.final_cells({})[-1]).method_config.kind == "quantum"
    monkeypatch.undo()  # as in another process, which has not read the file
    mine = read_study(plan.folder).methods[1]
    assert (mine.kind, mine.prunes_ranks, mine.report_note) == ("quantum", True, "A note.")


def test_quantum_method_without_a_circuit_is_classical(study, tmp_path):
    circuit = {"key": "circuit", "method": "quantum_peft", "settings": {"frame": "gradient"}}
    core = {"key": "core", "method": "quantum_peft", "settings": {"frame": "gradient", "family": "core"}}
    found = make_plan(study(methods=[METHODS[1], circuit, core]), tmp_path / "out").study.methods
    assert [method.kind for method in found[1:]] == ["quantum", "classical"]


def test_study_file_of_release_0_1_is_completed_from_the_table_of_methods(study, tmp_path):
    values = make_plan(study(), tmp_path / "out").study.model_dump()
    for method in values["methods"]:
        for name in ("kind", "prunes_ranks", "report_note"):
            del method[name]
    (tmp_path / "study.json").write_text(json.dumps(values))
    found = {method.key: method for method in read_study(tmp_path).methods}
    assert (found["qpa"].kind, found["lora"].kind) == ("quantum", "classical")
    assert (found["sora"].prunes_ranks, found["lora"].prunes_ranks) == (True, False)


def test_learning_rate_with_the_lowest_loss_is_chosen(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    rows = {cell.cell_id: failed_row(cell, RuntimeError("planted")) for cell in plan.tuning_cells({})}
    for cell in plan.tuning_cells({}):
        if cell.method == "lora":
            rows[cell.cell_id] = started_row(cell).updated(status="success", quality=Quality(valid_loss=1 / cell.lr))
    finals = {cell.method: cell for cell in plan.final_cells(rows) if cell.seed == 0}
    assert (finals["lora"].lr, finals["lora"].lr_at_edge) == (0.1, "high")
    assert finals["qpa"].impossible == "no trial of a learning rate succeeded; one failed: planted"
    assert "lower lr" in next(cell for cell in plan.final_cells({}) if cell.method == "qpa").impossible
    assert finals["none"].impossible is None


def test_hash_depends_on_the_config_of_the_method(study, tmp_path):
    before = {method.key: method.hash for method in make_plan(study(), tmp_path / "a").study.methods}
    other = [{**method, "settings": {"r": 3}} if method["key"] == "lora" else method for method in METHODS]
    after = {m.key: m.hash for m in make_plan(study(methods=other), tmp_path / "b").study.methods}
    assert {key for key in before if before[key] != after[key]} == {"lora"}
    longer = make_plan(study(**{"training.steps": 7}), tmp_path / "c").study.methods
    assert all(before[method.key] != method.hash for method in longer)


def test_block_uses_the_largest_size_within_the_budget(study, tmp_path):
    sizes = {"key": "lora", "method": "lora", "vary": "r", "values": [1, 2, 3, 4, 5]}
    tight = {"key": "prefix", "method": "prefix", "vary": "num_virtual_tokens", "values": [40]}
    exact = {"key": "qpa", "method": "qpa", "settings": {"r": 4, "budget": "@budget"}}
    block = {"of": "prefix", "methods": [sizes, tight, exact]}
    methods = [*METHODS[:2], {"key": "prefix", "method": "prefix", "settings": {"num_virtual_tokens": 30}}]
    plan = make_plan(study(methods=methods, blocks=[block], **{"training.seq_len": 16}), tmp_path / "out")
    found = {member.key: member for member in plan.study.blocks[0].members}
    budget = 30 * 2 * 16 * 2
    assert plan.study.blocks[0].budget == budget
    assert found["lora@prefix"].trainable == 3 * 2 * 256 <= budget
    assert found["prefix@prefix"].over_budget
    assert not found["prefix@prefix"].ranked
    assert 0.8 <= found["qpa@prefix"].ratio <= 1
    assert found["qpa@prefix"].ranked


def test_names_of_norms_are_those_of_the_base(study, tmp_path):
    gains = {"key": "gains", "method": "lora", "settings": {"r": 1, "modules_to_save": "@norms"}}
    last = {"key": "last", "method": "lora", "settings": {"r": 1, "modules_to_save": "@last-norm"}}
    plan = make_plan(
        study(methods=[*METHODS[:2], gains], blocks=[{"of": "gains", "methods": [last]}]), tmp_path / "out"
    )
    found = {method.key: method for method in plan.study.methods}
    assert found["gains"].settings["modules_to_save"] == ["ln_1", "ln_2", "ln_f"]
    # rank 1 on two layers; weights and biases of two norms in each layer, and of the last
    assert found["gains"].trainable == 2 * 256 + 5 * 2 * 16
    assert found["last@gains"].trainable == 2 * 256 + 2 * 16


@pytest.mark.long
def test_data_order_and_initial_loss_are_equal_for_all_methods(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    rows = [run_cell(cell, plan.folder) for cell in cells_of(plan, *(method["key"] for method in METHODS))]
    trained = [row for row in rows if row.method != "none"]
    assert len({row.data.order_sha256 for row in trained}) == 1
    assert len({row.data.tokens_seen for row in trained}) == 1
    [other] = cells_of(plan, "lora", seed=1)
    assert run_cell(other, plan.folder).data.order_sha256 != trained[0].data.order_sha256
    starts = {row.method: row.train.curve[0][2] for row in rows}
    base = starts.pop("none")
    assert abs(starts.pop("prefix") - base) > 1e-4
    assert starts.pop("dora") == pytest.approx(base, abs=1e-5)
    assert starts.pop("quantum_peft") == pytest.approx(base, abs=1e-5)
    assert starts.pop("qpa") == pytest.approx(base, abs=1e-2)  # A and B are small, not zero
    assert set(starts.values()) == {base}


def test_row_has_the_fields_of_the_specification(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    [cell] = cells_of(plan, "qpa")
    row = run_cell(cell, plan.folder)
    assert row.status == "success"
    assert {"lr", "steps", "seconds", "curve", "lr_at_grid_edge"} <= row.train.model_fields_set
    assert [point[0] for point in row.train.curve if point[2] is not None] == [0, 3, 6]
    assert {"valid_loss", "test_loss", "test_ppl", "bits_per_byte", "best_step"} <= row.quality.model_fields_set
    counts = row.cost
    assert counts.params_trainable == counts.params_generator < counts.params_deployed
    assert counts.optimizer_bytes >= 2 * 4 * counts.params_trainable  # AdamW's two moments
    assert row.data.splits["test_tokens"] > 0
    assert json.dumps(row.to_json(), allow_nan=False)
    folder = work_folder(cell, plan.folder)
    assert folder.exists()
    tidy(cell, plan.folder)
    assert not folder.exists()


def test_stored_bytes_of_an_adapter_without_its_frames_are_those_with_a_frame_file(study, tmp_path):
    settings = {"r": 2, "frame": "gradient", "frame_rank": 4, "share": "type", "store_frames": False}
    settings |= {"bits": 16, "lambda_bits": 16}
    methods = [{"key": "inside", "method": "quantum_peft", "settings": {**settings, "store_frames": True}, "lr": 0.01}]
    methods += [{"key": "file", "method": "quantum_peft", "settings": settings, "lr": 0.01}]
    plan = make_plan(study(methods=methods, reference="inside"), tmp_path / "out")
    rows = {cell.method: run_cell(cell, plan.folder) for cell in cells_of(plan, "inside", "file")}
    assert rows["file"].quality.test_loss == rows["inside"].quality.test_loss
    assert rows["file"].cost.params_trainable == rows["inside"].cost.params_trainable
    values = 2 * rows["file"].cost.params_trainable
    assert values < rows["file"].cost.bytes_stored < values + 200  # one tensor
    assert rows["inside"].cost.bytes_stored > 2 * rows["file"].cost.bytes_stored


def test_backend_is_used_in_training_and_not_in_scores(study, tmp_path):
    settings = {"r": 8, "chunk_size": 80, "hidden": [4, 8], "n_layers": 2, "activation": "identity", "angle_scale": 50}
    shots = {"key": "shots", "method": "qpa", "settings": settings, "lr": 0.001, "backend": {"shots": 400}}
    changes = {"methods": [{**shots, "key": "exact", "backend": {}}, shots], "reference": "exact"}
    plan = make_plan(study(**changes), tmp_path / "out")
    assert len({method.hash for method in plan.study.methods}) == 2
    exact, noisy = (run_cell(cell, plan.folder) for cell in cells_of(plan, "exact", "shots"))
    assert noisy.method_config.backend == {"shots": 400}
    assert noisy.train.circuits["shots"] == 400 * noisy.train.circuits["circuits"] > 0
    assert noisy.quality.test_loss != exact.quality.test_loss  # trained with them
    assert noisy.train.curve[0][2] == exact.train.curve[0][2]  # scored without
    assert noisy.quality.valid_loss_on_backend != noisy.quality.valid_loss
    assert "valid_loss_on_backend" not in exact.quality.model_fields_set
    assert "circuits" not in exact.train.model_fields_set


def test_hardware_jobs_are_counted_and_not_sent_for_times(study, tmp_path, monkeypatch):
    sent = []
    run = ExactBackend.run
    monkeypatch.setattr(ExactBackend, "is_simulator", False)
    monkeypatch.setattr(ExactBackend, "run", lambda self, *given: sent.append(given) or run(self, *given))
    settings = {"r": 8, "chunk_size": 80, "hidden": [4, 8], "n_layers": 2, "activation": "identity"}
    shots = {"key": "shots", "method": "qpa", "settings": settings, "lr": 0.001, "backend": {"shots": 400}}
    plan = make_plan(study(methods=[shots], reference="shots"), tmp_path / "out")
    [cell] = cells_of(plan, "shots")
    plan.estimate()
    cost = changed(plan.cost_cells({})[0], impossible=None, lr=0.001)
    assert "exact circuits" in run_cell(cost, plan.folder).null_reasons["cost.on_backend"]
    assert not sent
    row = run_cell(cell, plan.folder)
    log = (work_folder(cell, plan.folder) / "run" / "jobs.jsonl").read_text().splitlines()
    answered = [json.loads(line) for line in log if json.loads(line)["event"] == "answered"]
    assert len(answered) == len(sent)
    assert row.train.circuits["jobs"] + 1 == len(sent)  # the last one is the score on the backend
    assert row.quality.valid_loss_on_backend is not None
    assert settings_of(cell, tmp_path).save_every is None


def test_hours_are_estimated_on_the_device_on_which_cells_train(study, tmp_path, monkeypatch):
    plan = make_plan(study(methods=METHODS[1:2]), tmp_path / "out")

    class Stop:
        def __init__(self, model, settings):
            self.model = model

        def step(self, batch):
            raise InterruptedError({tensor.device.type for tensor in (*self.model.parameters(), *batch.values())})

    monkeypatch.setattr(estimate, "_device", lambda: torch.device("meta"))
    monkeypatch.setattr(speed, "TrainingSteps", Stop)
    with pytest.raises(InterruptedError, match=r"^\{'meta'\}$"):
        plan.estimate()
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert estimate._device() == torch.device("cuda")


@pytest.mark.parametrize("content", ["{", '{"HASH": {"start": 1.0}}'])
def test_damaged_estimate_is_replaced(study, tmp_path, content):
    changes = {"training.eval_blocks": 0, "test_blocks": 0}  # all blocks
    plan = make_plan(study(methods=METHODS[:2], **changes), tmp_path / "out")
    (tmp_path / "out" / "estimate.json").write_text(content.replace("HASH", plan.final_cells({})[0].hash))
    assert plan.estimate()["final"] > 0
    for timed in json.loads((tmp_path / "out" / "estimate.json").read_text()).values():
        assert min(timed["valid_blocks"], timed["test_blocks"]) > 0
        assert timed["eval_every"] == 3


def test_parameters_with_the_lowest_validation_loss_are_tested(study, tmp_path):
    # the learning rate is so high that the last evaluation is worse than an earlier one
    plan = make_plan(study(**{"training.eval_every": 1}), tmp_path / "out")
    [cell] = cells_of(plan, "lora")
    row = run_cell(changed(cell, lr=0.5), plan.folder)
    curve = [(step, loss) for step, _, loss, _ in row.train.curve]
    assert row.quality.best_step == min(curve, key=lambda point: point[1])[0] < 6
    assert row.quality.valid_loss == min(loss for _, loss in curve)
    assert row.quality.valid_loss_last == curve[-1][1]


def test_moved_study_resumes_with_moved_data_and_base(study, tmp_path, tiny_model, text_file):
    [unbroken] = cells_of(make_plan(study(), tmp_path / "unbroken"), "lora")
    expected = run_cell(unbroken, tmp_path / "unbroken")

    def stop(done, _total):
        if done == 4:
            raise KeyboardInterrupt

    plan = make_plan(study(), tmp_path / "out")
    plan.study.write(plan.folder)
    [cell] = cells_of(plan, "lora")
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, plan.folder, stop)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    base, data = shutil.copytree(tiny_model, tmp_path / "base"), shutil.copy(text_file, tmp_path / "copy.txt")
    plan = make_plan(study(base=str(base), data=str(data)), tmp_path / "moved")
    [cell], steps = cells_of(plan, "lora"), []
    row = run_cell(cell, plan.folder, lambda done, _total: steps.append(done))
    assert steps[0] == 3
    assert (row.cell_id, row.quality.test_loss) == (expected.cell_id, expected.quality.test_loss)
    data.write_text(data.read_text() + " more")
    with pytest.raises(ConfigError, match="was split from other data: data "):
        make_plan(study(data=str(data)), tmp_path / "moved")


def test_folder_of_a_method_file_is_not_part_of_its_hash(study, tmp_path, monkeypatch):
    file = tmp_path / "own_method.py"
    text = (Path(__file__).parents[2] / "examples" / "own_method.py").read_text()
    file.write_text(text.replace("nola", "portable").replace("NOLA", "PORTABLE"))
    own = [{"key": "none", "method": "none"}, {"key": "own", "method": f"{file}:METHOD", "lr": 0.01}]
    first = make_plan(study(methods=own, reference="own"), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    own[1]["method"] = "own_method.py:METHOD"
    assert (
        make_plan(study(methods=own, reference="own"), tmp_path / "b").study.methods[1].hash
        == first.study.methods[1].hash
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.steps": 3}, "training.steps 6, not 3"),
        ({"test_blocks": 2}, "test_blocks 4, not 2"),
        ({"tuning.grid": [1.0]}, "tuning.grid "),
        ({"lr_scale": 2.0}, "other learning rates of all methods"),
    ],
)
def test_results_of_other_training_are_kept(study, tmp_path, changes, message):
    plan = make_plan(study(), tmp_path / "out")
    plan.study.write(plan.folder)
    make_plan(study(**changes), tmp_path / "out")  # nothing has been trained
    RowFile(plan.folder).append(started_row(cells_of(plan, "lora")[0]).updated(status="success"))
    with pytest.raises(ConfigError, match=re.escape(f"{plan.folder} holds results with {message}")):
        make_plan(study(**changes), tmp_path / "out")
    make_plan(study(methods=METHODS[:3], seeds=[0, 1, 2, 3]), tmp_path / "out")


def test_non_finite_loss_gives_status_diverged(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    [cell] = cells_of(plan, "full")
    row = run_cell(changed(cell, lr=1e30), plan.folder)
    assert row.status == "diverged"
    assert row.error_msg


def test_folder_that_another_study_has_used_since_the_plan_is_rejected(study, tmp_path):
    plan, other = (make_plan(study(name=name), tmp_path / "out") for name in ("survey", "other"))
    plan.claim()
    plan.claim()
    with pytest.raises(ConfigError, match="holds a study with study 'survey'"):
        other.claim()
    assert read_study(plan.folder).name == "survey"


def test_folder_of_another_study_is_rejected(study, tmp_path, tiny_model):
    make_plan(study(), tmp_path / "out").study.write(tmp_path / "out")
    with pytest.raises(ConfigError, match="study 'survey'"):
        make_plan(study(name="other"), tmp_path / "out")
    with pytest.raises(ConfigError, match="was split from other data: data "):
        make_plan(study(data="numpy-docs"), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_plan(study(), tmp_path / "mine")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": "./no/model"}, InputError, "no model folder"),
        ({"data": "nothing.txt"}, DataError, "no file or folder"),
        ({"bad": {"method": "qpa", "settings": {"budget": 3}}}, ConfigError, "method bad: .*too small"),
        ({"bad": {"method": "lora", "settings": {"rank": 3}}}, ConfigError, "'rank'"),
        ({"bad": {"method": "head"}}, ConfigError, "method bad: .*which task causal-lm lacks"),
        ({"bad": {"method": "full"}, "training.dtype": "bfloat16"}, ConfigError, "method bad: .*use dtype float32"),
        ({"blocks": [{"of": "none", "methods": [METHODS[1]]}]}, ConfigError, "blocks.of: none trains no parameters"),
        ({"tuning.grid": [1, 1.0001]}, ConfigError, "2 factors give lora only 1 learning rates"),
        ({"generation": {"bertscore_model": "no/encoder"}}, ConfigError, "bertscore_model: no folder"),
    ],
)
def test_invalid_studies_are_rejected_before_any_cell(study, tmp_path, changes, error, message):
    bad = changes.pop("bad", None)
    methods = [METHODS[1], {"key": "bad", **bad}] if bad else METHODS[:2]
    with pytest.raises(error, match=message):
        make_plan(study(methods=methods, **changes), tmp_path / "out")


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
def test_classifications_have_accuracy(task, tmp_path, tiny_encoder, tiny_vit, opinion_files, bar_files):
    model, (data, _) = (tiny_encoder, opinion_files) if task == "text-classification" else (tiny_vit, bar_files)
    methods = [
        {"key": "head", "method": "head", "lr": 0.01},
        {"key": "lora", "method": "lora", "settings": {"r": 2}, "lr": 0.01},
    ]
    asked = {**SMALL, "base": str(model), "data": str(data), "task": task, "methods": methods, "reference": "head"}
    plan = make_plan(load_study("survey", asked), tmp_path / "out")
    assert plan.study.metric == "test_accuracy"
    torch.manual_seed(0)
    for cell in cells_of(plan, "head", "lora"):
        row = run_cell(cell, plan.folder)
        assert 0 <= row.quality.test_accuracy <= 1
        assert row.data.splits["test_tokens"] in (4, 6)
        assert 0 < row.cost.params_head <= row.cost.params_trainable


def test_head_of_a_classification_is_not_counted(tmp_path, tiny_vit, bar_files):
    """Whatever number of classes the base has, and with targets that would match the head."""
    settings = {"lora": {"r": 4, "target_modules": "all-linear"}, "qpa": {"r": 4, "budget": 0.5}, "full": {}}
    methods = [{"key": key, "method": key, "settings": own, "lr": 0.01} for key, own in settings.items()]
    asked = {**SMALL, "base": str(tiny_vit), "data": str(bar_files[0]), "task": "image-classification"}
    plan = make_plan(load_study("survey", {**asked, "methods": methods, "reference": "lora"}), tmp_path / "out")
    for method in plan.study.methods:
        model, task = untrained_model(cells_of(plan, method.key)[0])
        assert method.trainable == count_trainable(model) - count_trainable(model, task.head), method.key
        assert method.deployed == count_deployed(model) - count_trainable(model, task.head), method.key


def test_answers_to_test_prompts_are_scored(study, tmp_path):
    data = tmp_path / "pairs.csv"
    lines = [f'"name[the {n // 2} bird], area[wood]","the bird number {n // 2} sings in the wood"' for n in range(120)]
    data.write_text("mr,ref\n" + "\n".join(lines) + "\n")
    columns = {"training.prompt_column": "mr", "training.completion_column": "ref", "training.seq_len": 61}
    asked = {"data": str(data), "generation": {"max_new_tokens": 5, "n_prompts": 2}, "metric": "bleu", **columns}
    plan = make_plan(study(**asked), tmp_path / "out")
    [cell] = cells_of(plan, "lora")
    row = run_cell(cell, plan.folder)
    assert len(row.quality.texts) == 2
    assert row.quality.bleu_signature.startswith("nrefs:2|")
    assert 0 <= row.quality.bleu <= 100
    assert 0 <= row.quality.rougeL <= 1
    assert 0 <= row.quality.chrf <= 100
    assert min(row.quality.nist, row.quality.cider, row.quality.rougeL_coco) >= 0
    assert row.quality.bertscore_f1 is None
    assert "no local encoder given" in row.null_reasons["quality.bertscore_f1"]


def test_answers_found_by_beam_search_are_those_of_another_cell(study, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"the {n} bird", "completion": "sings in the wood"} for n in range(60)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    usual = {"max_new_tokens": 8, "n_prompts": 2}
    asked = {"data": str(data), "training.seq_len": 61, "methods": METHODS[:1], "reference": "none"}
    greedy, spelled, beams = (
        cells_of(make_plan(study(**asked, generation=own, metric="nist"), tmp_path / str(i)), "none")[0]
        for i, own in enumerate((usual, {**usual, "num_beams": 1}, {**usual, "num_beams": 3, "length_penalty": 0.8}))
    )
    assert greedy.hash == spelled.hash != beams.hash
    texts = [run_cell(cell, tmp_path / str(i)).quality.texts for i, cell in ((0, greedy), (2, beams))]
    assert texts[0] != texts[1]


def test_hashes_are_those_of_earlier_versions():
    """Rows of a study that was interrupted before an option existed are found again."""
    files = {"train": Path("a"), "validation": Path("b"), "test": Path("c")}
    setup = Setup(
        model="base",
        base=Base(sha256="base"),
        data=SplitData(id="data", sha256="data", **files),
        task="causal-lm",
        training=Training(),
        generation=Generation(max_new_tokens=5, n_prompts=2),
    )
    for key, known in {"lora": "01f508b97b27", "vera": "3365d9d198b9", "fourierft": "2925feec7d43"}.items():
        spec = MethodSpec(key=key, method=key, settings={"r": 2})
        assert config_hash(load_study("survey"), setup, spec, [0.1, 0.2]) == known


def test_each_seed_and_the_trials_have_their_own_random_projections(study, tmp_path):
    names = {"uni_lora": "proj_seed", "tiny_lora": "projection_seed", "vera": "projection_prng_key"}
    names |= {"fourierft": "random_loc_seed"}
    own = {"uni_lora": {"r": 2, "theta_d_length": 64}, "fourierft": {"n_frequency": 50}}
    used = [{"key": key, "method": key, "settings": own.get(key, {}), "lr": 0.01} for key in names]
    fixed = {"key": "fixed", "method": "vera", "settings": {"projection_prng_key": 7}, "lr": 0.01}
    plan = make_plan(study(methods=[*METHODS[:2], *used, fixed], reference="lora"), tmp_path / "out")
    names["fixed"] = "projection_prng_key"
    found = {key: set() for key in names}
    for cell in (*plan.tuning_cells({}), *plan.final_cells({})):
        if cell.method in names:
            config = untrained_model(changed(cell, impossible=None))[0].peft_config["default"]
            found[cell.method].add((cell.seed, getattr(config, names[cell.method])))
    for key in names:
        step = methods.get("vera" if key == "fixed" else key).seed_step
        assert found[key] == {(seed, 7 if key == "fixed" else seed * step) for seed in (0, 1, 2, 1000)}, key


def test_forgetting_is_the_increase_of_the_loss_on_a_general_text(study, tmp_path):
    general = tmp_path / "general.txt"
    general.write_text(" ".join(f"{n} goblins ate {n * n} plums" for n in range(300)))
    plan = make_plan(study(general_data=str(general)), tmp_path / "out")
    [untrained], [full] = cells_of(plan, "none"), cells_of(plan, "full")
    assert run_cell(untrained, plan.folder).quality.forgetting_shifted == 0
    assert run_cell(full, plan.folder).quality.forgetting_shifted != 0
    without = make_plan(study(generation={"max_new_tokens": 5}), tmp_path / "without")
    [cell] = cells_of(without, "none")
    assert cell.hash != untrained.hash
    row = run_cell(cell, without.folder)
    assert row.quality.forgetting_shifted is None
    assert row.null_reasons["quality.forgetting_shifted"] == "the study names no general_data"
    assert row.quality.bleu is None
    assert row.null_reasons["quality.bleu"] == "the data has no prompts with answers"


def test_virtual_tokens_shorten_the_blocks_of_all_methods(study, tmp_path):
    plan = make_plan(study(**{"training.seq_len": None}), tmp_path / "out")
    assert plan.study.training.seq_len == 64 - 3
    rows = [run_cell(cell, plan.folder) for cell in cells_of(plan, "lora", "prefix")]
    assert len({row.data.order_sha256 for row in rows}) == 1
    assert len({row.data.splits["test_tokens"] for row in rows}) == 1


def test_too_long_prompt_leaves_the_other_measurements(study, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{n} " + "the bird sings " * 5, "completion": "at night"} for n in range(60)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = {"data": str(data), "generation": {"max_new_tokens": 50}, "training.seq_len": 61}
    plan = make_plan(study(**asked), tmp_path / "out")
    [cell] = cells_of(plan, "lora")
    row = run_cell(cell, plan.folder)
    assert row.status == "success"
    assert row.quality.test_loss > 0
    assert row.quality.bleu is None
    assert row.null_reasons["quality.bleu"]


def test_damaged_study_file_is_rejected_and_can_be_deleted(study, tmp_path):
    plan = make_plan(study(), tmp_path / "out")
    plan.study.write(plan.folder)
    RowFile(plan.folder).append(failed_row(plan.final_cells({})[0], OSError()))
    (tmp_path / "out" / "study.json").write_text('{"schema": 1')
    with pytest.raises(CheckpointError, match="delete it and run `qpeft compare run` again"):
        make_plan(study(), tmp_path / "out")
    (tmp_path / "out" / "study.json").unlink()
    assert make_plan(study(), tmp_path / "out").study == plan.study


def test_prompts_that_are_too_long_are_named_in_the_row_and_the_report(study, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{n} " + "the bird sings " * (30 * (n % 3 == 0)), "completion": "at night"} for n in range(60)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    plan = make_plan(study(data=str(data)), tmp_path / "out")
    plan.study.write(plan.folder)
    [cell] = cells_of(plan, "none")
    row = run_cell(cell, plan.folder)
    shares = {"train": "18 of 54", "validation": "1 of 3", "test": "1 of 3"}
    why = "left out: no answer begins within seq_len=32 tokens; raise seq_len or shorten the prompts"
    assert row.data.left_out == [
        f"{share} rows of {getattr(plan.setup.data, part)} are {why}" for part, share in shares.items()
    ]
    RowFile(plan.folder).append(row)
    assert f"{row.data.left_out[0]}." in summarise(plan.study, read_rows(plan.folder)).limits
