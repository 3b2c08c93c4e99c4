"""Recipes of published tables: each runs as a smoke test, and its parameter counts are the published ones."""

import gc
import json
import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from qpeft_lab.compare import RECIPES, runner
from qpeft_lab.compare.cell import run_cell
from qpeft_lab.compare.plan import count, host_of
from qpeft_lab.compare.rows import read_rows
from qpeft_lab.compare.study import load_study
from qpeft_lab.compare.summary import load

WITH_CHARTS = "quantum-peft-vit-cifar10"  # they take longer than the cells
ALL = [name.removeprefix("recipes/").removesuffix(".yaml") for name in RECIPES]


def recipe(name):
    return f"recipes/{name}.yaml"


class Inline:
    """Runs cells in this process: forks and imports take longer than the cells."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def stop(self):
        pass

    def run(self, cells, is_exclusive=False):
        for cell in cells:
            yield cell, run_cell(cell, self.folder)


@pytest.fixture
def inline(monkeypatch):
    gc.freeze()  # as in a cell's process
    monkeypatch.setattr(runner, "_executor", lambda name: lambda folder, *_: Inline(folder))
    yield
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore")  # those of a command
@pytest.mark.parametrize(("name", "other_base"), [*((name, None) for name in ALL), ("qpa-gemma-wikitext2", "gemma2")])
def test_recipe_runs_as_a_smoke_test(name, other_base, inline, qpeft_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the recipe is found without the repository
    if name != WITH_CHARTS:
        monkeypatch.setattr("qpeft_lab.compare.report.page", lambda summary: "")
    study = load_study(recipe(name))
    if other_base is not None:
        study = load_study(recipe(name), {"smoke.model_type": other_base})
        monkeypatch.setattr("qpeft_lab.compare.study.load_study", lambda *_: study)
    done = qpeft_cli("compare", "run", recipe(name), "--smoke", "--out", "out")
    assert done.exit_code == 0, done.output
    summary = load(tmp_path / "out")
    compared = {found.key: found.control.to for found in summary.results if found.control is not None}
    assert compared == {method.key: method.against for method in study.methods if method.against is not None}
    rows = summary.rows
    assert {row["method"] for row in rows} == {method.key for method in study.methods}
    assert {row["status"] for row in rows} == {"success"}
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found["title"] == f"Smoke test of: {study.title}"
    assert "no value on this page is a result" in found["question"]
    n_published = sum(len(m.published) for m in study.methods)
    assert (sum(len(method["published"]) for method in found["methods"]) == n_published) or other_base
    assert AutoConfig.from_pretrained(tmp_path / "out" / "stand-in" / "base").model_type == study.smoke["model_type"]


@pytest.mark.filterwarnings("ignore")
def test_recipe_of_glue_runs_every_task(inline, qpeft_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qpeft_lab.compare.report.page", lambda summary: "")
    one = load_study(recipe("quantum-peft-deberta-glue"), {"data": "glue/stsb"})  # pairs, with numbers
    assert (one.task, one.metric, one.run.text_pair_column) == (
        "text-regression",
        "test_pearson",
        "sentence2",
    )
    done = qpeft_cli(
        *("compare", "run", recipe("quantum-peft-deberta-glue"), "--smoke", "--data", "glue/stsb", "--out", "out")
    )
    assert done.exit_code == 0, done.output
    for row in read_rows(tmp_path / "out").values():
        assert row["test_loss"] is not None
        assert "test_pearson" in row
    assert load(tmp_path / "out").metric.title == "Test Pearson correlation"


@pytest.mark.parametrize(
    ("data", "epochs", "seq_len"),
    [("glue/cola", 25, 64), ("glue/rte", 50, 320), ("glue/qnli", 5, 512), ("glue/rte:folder", 50, 320)],
)
def test_recipe_of_glue_has_the_epochs_and_length_of_each_task(data, epochs, seq_len):
    name = recipe("quantum-peft-deberta-glue")
    found = load_study(name, {"data": data}).training
    assert (found["epochs"], found["seq_len"]) == (epochs, seq_len)
    assert load_study(name, {"data": data, "training.epochs": 2}).training["epochs"] == 2
    assert "epochs" not in load_study(name, {"data": data, "training.steps": 7}).training


def test_page_lists_the_epochs_and_lengths_of_the_recipe():
    page = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", page, flags=re.MULTILINE)
    assert len(shown) == 8
    for task, *expected in shown:
        run = load_study(recipe("quantum-peft-deberta-glue"), {"data": f"glue/{task}"}).run
        assert [run.epochs, run.seq_len] == list(map(int, expected))


# the geometry of each language model, as in its config.json
GPT2 = {"model_type": "gpt2"}
GPT2_MEDIUM = GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}
GEMMA = {"model_type": "gemma", "vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 16_384}
GEMMA |= {"num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256}
GEMMA_2 = {"model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216}
GEMMA_2 |= {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
DEBERTA = {"model_type": "deberta-v2", "vocab_size": 128_100, "hidden_size": 768, "intermediate_size": 3072}
DEBERTA |= {"num_hidden_layers": 12, "num_attention_heads": 12, "type_vocab_size": 0, "relative_attention": True}
DEBERTA |= {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
DEBERTA |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
MISTRAL = {"model_type": "mistral"}


@pytest.mark.parametrize(
    ("name", "geometry", "counts"),
    [
        # 0.5288, 0.2753, 4.3605, 1.0188 and 0.1880 % of the head, printed as 0.52, 0.27, 4.36, 1.01 and 0.18 %
        (
            "qpa-gpt2-wikitext2",
            GPT2,
            {"lora": 204_100, "qpa": 106_264, "dora": 1_683_057, "prefix": 393_216, "qpa_prefix": 72_552},
        ),
        # 0.1969, 0.0332, 0.2000, 0.0138, 0.4005 and 0.0139 %, printed as 0.19, 0.03, 0.20, 0.01, 0.40 and 0.01 %
        (
            "qpa-gemma-wikitext2",
            GEMMA,
            {
                "lora": 1_032_192,
                "qpa": 173_888,
                "prefix": 1_048_576,
                "qpa_prefix": 72_592,
                "ffa": 2_099_712,
                "qpa_ffa": 72_672,
            },
        ),
        # the base that the paper names: 0.1752 and 0.0295 %, which are not the published ones
        ("qpa-gemma-wikitext2", GEMMA_2, {"lora": 1_033_216, "qpa": 173_888}),
        (
            "quantum-peft-gpt2-e2e",
            GPT2_MEDIUM,
            {"lora": 393_216, "quantum_peft": 98_352, "prefix": 344_064, "adapter": 368_808},
        ),
        ("quantum-peft-deberta-glue", DEBERTA, {"lora": 331_776, "quantum_peft": 12_720}),
        (
            "quantum-peft-mistral-glue",
            MISTRAL,
            {"lora": 3_407_872, "quantum_peft": 852_096, "pauli": 7_360, "lora_r2": 851_968},
        ),
    ],
)
def test_recipe_has_the_published_parameter_counts(name, geometry, counts, tmp_path):
    study = load_study(recipe(name))
    AutoConfig.for_model(**geometry).save_pretrained(tmp_path)
    host = host_of(study, str(tmp_path), False)
    found = {spec.key: count(study, host, spec, spec.settings)[0] for spec in study.methods if spec.key in counts}
    assert found == counts
