"""The criterion of the study of forward passes: shares of AdamW's gain, seed by seed, from the rows of a study."""

import json

import pytest
from tiny_models import make_text

import forward_passes_table
from forward_passes_table import lines_of
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.cell import started_row
from qpeft.compare.plan import make_plan
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Quality, line_of, read_rows
from qpeft.compare.study_file import load_study

ADAPTERS = {
    "circuit": ("framed circuit, R=32", "quantum_peft", {"r": 2, "frame": "gradient"}),
    "ga": ("LoRA-GA r=1", "lora", {"r": 1, "init_lora_weights": "lora_ga"}),
    "weights": ("circuit in the weights' frame", "quantum_peft", {"r": 2, "frame": "weights"}),
    "lora": ("LoRA r=1", "lora", {"r": 1}),
}
# by key: test loss with seed 0, and its increase from seed to seed; the untrained base has 5.0
LOSSES = {
    "none": (5.0, 0.0),
    "circuit_adam": (4.0, 0.0),
    "circuit_es": (4.1, 0.01),
    "ga_adam": (4.0, 0.0),
    "ga_es": (4.5, 0.02),
    "weights_adam": (4.5, 0.0),
    "weights_es": (4.58, 0.01),
    "lora_adam": (3.0, 0.0),
    "lora_es": (4.2, 0.0),
}


@pytest.fixture
def folder(tmp_path, tiny_model):
    """Rows of a study with such methods, of which one adapter has a diverged seed."""
    (tmp_path / "tale.txt").write_text(make_text(800))
    methods = [
        {"key": f"{key}_{ending}", "label": f"{label}, {optimizer}", "method": method, "settings": settings, "lr": 1e-3}
        for key, (label, method, settings) in ADAPTERS.items()
        for ending, optimizer in (("adam", "Adam"), ("es", "ES"))
    ]
    study = {
        **{"name": "forward-passes", "title": "Forward passes only", "question": "Which?", "reference": "circuit_es"},
        **{"base": str(tiny_model), "data": str(tmp_path / "tale.txt"), "seeds": [0, 1, 2, 3, 4]},
        **{"training": {"steps": 2, "seq_len": 32}, "tuning": {"grid": [1.0]}, "costs": False},
        "methods": [{"key": "none", "method": "none"}, *methods],
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    plan = make_plan(load_study(str(tmp_path / "study.yaml"), {}), tmp_path / "out")
    plan.study.write(plan.folder)
    rows = []
    for cell in plan.final_cells({}):
        first, more = LOSSES[cell.method]
        row = started_row(cell.model_copy(update={"lr": (cell.spec.rates or [None])[0], "impossible": None}))
        is_lost = (cell.method, cell.seed) == ("ga_es", 3)
        quality = Quality(test_loss=first + more * cell.seed)
        rows.append(row.updated(status="diverged" if is_lost else "success", quality=quality))
    (plan.folder / "rows.jsonl").write_text("".join(map(line_of, rows)))
    return plan.folder


def test_share_is_computed_seed_by_seed(folder):
    lines = {line.label: line for line in lines_of(summarise(read_study(folder), read_rows(folder)))}
    assert list(lines) == ["framed circuit, R=32, ES", "circuit in the weights' frame, ES", "LoRA r=1, ES"]
    circuit = lines["framed circuit, R=32, ES"]
    assert circuit.share.values == pytest.approx({seed: 0.9 - 0.01 * seed for seed in range(5)})
    assert circuit.share.half_width == pytest.approx(2.776 * 0.0158114 / 5**0.5, rel=1e-3)
    assert (circuit.reaches_goal, circuit.is_fitted, circuit.to_circuit) == ("yes", True, None)
    weights = lines["circuit in the weights' frame, ES"]
    assert (weights.share.mean, weights.is_fitted) == (pytest.approx(0.8), False)
    assert weights.reaches_goal == "not shown"
    lora = lines["LoRA r=1, ES"]
    assert lora.reaches_goal == "no"
    assert lora.to_circuit.mean == pytest.approx(4.12 - 4.2)
    assert lora.to_circuit.low == pytest.approx(-0.08 - circuit.share.half_width)


def test_tables_keep_adapters_without_data_apart(folder, capsys):
    forward_passes_table.main([str(folder)])
    fitted, _, others = capsys.readouterr().out.partition("**Without data**")
    assert "| framed circuit, R=32, ES |" in fitted
    assert "| 88.0% [86.0%, 90.0%] | yes |  |" in fitted
    assert "| LoRA r=1, ES |" in others
    assert "-0.0800 [-0.0996, -0.0604]" in others
    assert "Left out, because a run is missing or failed: ga_es." in others
