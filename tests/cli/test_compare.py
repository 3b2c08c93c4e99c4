"""`qpeft compare` on a tiny base: results and exit codes; the recipes of published tables."""

import json

import planted_cells
import pytest
import yaml
from published_study import write_study
from transformers import AutoConfig

from qpeft_lab.compare import RECIPES
from qpeft_lab.compare.plan import count, host_of
from qpeft_lab.compare.study import load_study
from qpeft_lab.compare.summary import load

STUDY = """
name: small
title: A small study
question: Does the command line work?
seeds: [0, 1]
tuning: {{grid: [1.0]}}
run: {{model: "{base}", data: "{data}", steps: 3, batch_size: 2, seq_len: 32, eval_every: 3, eval_blocks: 2}}
test_blocks: 2
methods:
  - {{key: none, method: none}}
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: ia3, method: ia3, lr: 0.01}}
"""


@pytest.fixture
def study(base_folder, text, tmp_path):
    (path := tmp_path / "small.yaml").write_text(STUDY.format(base=base_folder, data=text))
    return path


@pytest.mark.long
@pytest.mark.xdist_group("comparison")
def test_failed_cell_exits_with_code_3_and_is_retried(
    qpeft_cli, answer, study, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    # slow, and tested elsewhere
    monkeypatch.setattr("qpeft_lab.compare.plan.Plan.cost_cells", lambda self, rows: [])
    with monkeypatch.context() as patch:
        patch.setattr("qpeft_lab.compare.cell.run_cell", planted_cells.crash_in_ia3)
        crashed = qpeft_cli(f"compare run {study} --out {out} --json", code=3)
    content = json.loads(crashed.stdout)

    assert {failure["cell_id"].split("/")[1] for failure in content["failures"]} == {"ia3"}
    assert {failure["error"] for failure in content["failures"]} == {"planted"}

    statuses = {method["key"]: method["statuses"] for method in content["methods"]}
    assert statuses == dict.fromkeys(("none", "lora"), "0:success 1:success") | {
        "ia3": "0:failed 1:failed"
    }
    assert "ia3 seed1: failed: planted" in crashed.stderr

    # a failed cell is not run again without --retry
    kept = qpeft_cli(f"compare run {study} --out {out}", code=3)
    assert "5 of 5 cells are already done" in kept.stderr
    assert "failed: small/ia3/" in kept.stderr

    mended = qpeft_cli(f"compare run {study} --out {out} --retry failed", code=0)
    assert "3 of 5 cells are already done" in mended.stderr

    for word in ("A small study", "Test loss", "Difference", f"{out / 'report.html'}\n"):
        assert word in mended.stdout

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert answer(f"compare run {study} --out {out}")["n_done"] == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "qpeft compare run small.yaml --out out" in (out / "report.html").read_text()


def test_plan_counts_cells_and_writes_nothing(qpeft_cli, answer, study, tmp_path):
    before = sorted(tmp_path.iterdir())
    answered = answer(f"compare plan {study} --seeds 0,1,2 --steps 5 --gradient-checkpointing")
    assert answered["cells"] == {"tuning": 0, "final": 7, "cost": 2}
    assert answered["study"]["run"]["steps"] == 5
    assert (
        answered["study"]["command"]
        == f"qpeft compare run {study} --steps 5 --gradient-checkpointing --seeds 0,1,2 --out small"
    )
    assert answered["forecast"]["hours"] > 5 * answered["forecast"]["seconds_per_step"] / 3600
    assert sorted(tmp_path.iterdir()) == before

    shown = qpeft_cli(f"compare plan {study}")
    for word in ("lora", "0.01", "final", "here with one worker"):
        assert word in shown.stdout


def test_report_is_made_from_rows_alone(qpeft_cli, answer, tmp_path, monkeypatch):
    monkeypatch.setattr("qpeft_lab.compare.report.page", lambda summary: "")
    folder = write_study(tmp_path / "study")
    answered = answer(f"compare report {folder}")
    methods = {method["key"]: method for method in answered["methods"]}

    assert "3:missing" in methods["prefix"]["statuses"]
    assert methods["dora"]["delta.verdict"] == "no difference shown"
    # no trial of a learning rate
    assert [failure["status"] for failure in answered["failures"]] == [
        "failed",
        "diverged",
    ]
    assert (folder / "report.html").is_file()

    shown = qpeft_cli(f"compare report {folder}", env={"COLUMNS": "120"})
    for word in ("DoRA r=8 is not shown to differ", "QAA", "1 diverged", "2 missing"):
        assert word in shown.stdout
    assert "A learning rate outside those tried may be better for: QPA" in shown.stderr

    packed = tmp_path / "study.jsonl"
    packed.write_text("")
    report = (folder / "report.html").read_bytes()
    refused = qpeft_cli(f"compare report {packed}", code=2).stderr
    assert "is the folder of a study, whose report would be replaced" in refused
    assert (folder / "report.html").read_bytes() == report


# recipes

OF_GLUE = "quantum-peft-deberta-glue"
# to other recipes
ALIKE = ("survey-gpt2-e2e", "quantum-peft-gpt2-e2e", "qpa-gemma-wikitext2")
ALIKE += ("survey-smollm2-e2e", "quantum-peft-smollm2-e2e", "cua-smollm2-wikitext2")
ALIKE += ("quantum-peft-mistral-glue",)
WITH_CHARTS = "quantum-peft-vit-cifar10"  # they take longer than the cells
ALL = [name.removeprefix("recipes/").removesuffix(".yaml") for name in RECIPES]


def recipe(name):
    return f"recipes/{name}.yaml"


@pytest.mark.usefixtures("inline")
@pytest.mark.filterwarnings("ignore")  # those of a command
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE)) for name in ALL]
)
def test_recipe_runs_as_a_smoke_test(name, qpeft_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the recipe is found without the repository
    if name != WITH_CHARTS:
        monkeypatch.setattr("qpeft_lab.compare.report.page", lambda summary: "")
    data = "glue/stsb" if name == OF_GLUE else None  # another task than its own: pairs with numbers
    study = load_study(recipe(name), {"run.data": data} if data else {})
    given = f"--data {data}" if data else ""
    qpeft_cli(f"compare run {recipe(name)} --smoke --out out {given}", code=0)
    summary = load(tmp_path / "out")
    if name != OF_GLUE:  # where equal predictions have no correlation
        compared = {
            found.key: found.difference.to
            for found in summary.results
            if found.method.role == "control"
        }
        assert compared == {
            method.key: method.against for method in study.methods if method.against is not None
        }
    rows = summary.rows

    assert {row["method"] for row in rows} == {method.key for method in study.methods}
    assert {row["status"] for row in rows} == {"success"}
    assert all(study.metric in row for row in rows if row["name"] == "seed0")
    assert {row["params_head"] > 0 for row in rows if "params_head" in row} == {
        study.run.task != "causal-lm"
    }
    assert (study.metric == "test_pearson") == (data is not None)
    assert summary.study.title == f"Smoke test of: {study.title}"
    assert (
        AutoConfig.from_pretrained(tmp_path / "out" / "stand-in" / "base").model_type
        == study.smoke["model_type"]
    )


# the geometry of each language model, as in its config.json
GEOMETRIES = """
gpt2: {model_type: gpt2}
gpt2-medium: {model_type: gpt2, n_embd: 1024, n_layer: 24, n_head: 16}
gemma: {model_type: gemma, vocab_size: 256000, hidden_size: 2048, intermediate_size: 16384,
        num_hidden_layers: 18, num_attention_heads: 8, num_key_value_heads: 1, head_dim: 256}
gemma-2: {model_type: gemma2, vocab_size: 256000, hidden_size: 2304, intermediate_size: 9216,
          num_hidden_layers: 26, num_attention_heads: 8, num_key_value_heads: 4, head_dim: 256}
deberta: {model_type: deberta-v2, vocab_size: 128100, hidden_size: 768, intermediate_size: 3072,
          num_hidden_layers: 12, num_attention_heads: 12, type_vocab_size: 0,
          relative_attention: true, position_buckets: 256, norm_rel_ebd: layer_norm,
          share_att_key: true, pos_att_type: [p2c, c2p], position_biased_input: false}
mistral: {model_type: mistral}
llama: {model_type: llama, hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32,
        num_key_value_heads: 8}
"""
COUNTS = """
# 0.5288, 0.2753, 4.3605, 1.0188 and 0.1880 % of the head, printed as 0.52, 0.27, 4.36, 1.01 and 0.18 %
- [qpa-gpt2-wikitext2, gpt2,
   {lora: 204100, qpa: 106264, dora: 1683057, prefix: 393216, qpa_prefix: 72552}]
# 0.1969, 0.0332, 0.2000, 0.0138, 0.4005 and 0.0139 %, printed as 0.19, 0.03, 0.20, 0.01, 0.40 and 0.01 %
- [qpa-gemma-wikitext2, gemma,
   {lora: 1032192, qpa: 173888, prefix: 1048576, qpa_prefix: 72592, ffa: 2099712, qpa_ffa: 72672}]
# the base that the paper names: 0.1752 and 0.0295 %, which are not the published ones
- [qpa-gemma-wikitext2, gemma-2, {lora: 1033216, qpa: 173888}]
- [quantum-peft-gpt2-e2e, gpt2-medium,
   {lora: 393216, quantum_peft: 98352, prefix: 344064, adapter: 368808}]
- [quantum-peft-deberta-glue, deberta, {lora: 331776, quantum_peft: 12720}]
- [quantum-peft-mistral-glue, mistral,
   {lora: 3407872, quantum_peft: 852096, pauli: 7360, lora_r2: 851968}]
- [cua-llama-wikitext2, llama, {cua: 6144, cua_linear: 6144, oft: 6144, lora: 5120}]
"""


@pytest.mark.parametrize("name, geometry, counts", yaml.safe_load(COUNTS))
def test_recipe_has_the_published_parameter_counts(name, geometry, counts, tmp_path):
    study = load_study(recipe(name))
    AutoConfig.for_model(**yaml.safe_load(GEOMETRIES)[geometry]).save_pretrained(tmp_path)
    host = host_of(study, str(tmp_path), False)
    found = {
        spec.key: count(study, host, spec, spec.settings)[0]
        for spec in study.methods
        if spec.key in counts
    }

    assert found == counts
