"""Steps of a recipe's methods are timed on a base with random weights, of the recipe's size or of a small one."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from qpeft.compare.study_file import load_study


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from speed import recipes

    return recipes


@pytest.mark.filterwarnings("ignore")  # those of a command
@pytest.mark.parametrize("name", ["qpa-gpt2-wikitext2", "quantum-peft-vit-cifar10"])
def test_every_trained_method_of_a_recipe_is_timed(recipes, name):
    rows = {row.what.partition(":")[0]: row for row in recipes.recipe_rows(name, is_full=False, rounds=1)}
    assert rows.keys() == {spec.key for spec in load_study(f"recipes/{name}.yaml").methods if spec.method != "none"}
    assert all(row.ours > 0 and row.ratio == pytest.approx(row.theirs / row.ours) for row in rows.values())
    assert {row.other for row in rows.values()} == {"lora"}


def test_sizes_are_those_of_each_recipe(recipes):
    assert sorted(recipes.GEOMETRIES) == sorted(recipes.NAMES)
    sizes = {}
    for name, geometry in recipes.GEOMETRIES.items():
        config = AutoConfig.for_model(**load_study(f"recipes/{name}.yaml").smoke | geometry)
        sizes[name] = (config.hidden_size, config.num_hidden_layers, getattr(config, "vocab_size", None))
    assert sizes["qpa-gpt2-wikitext2"] == (768, 12, 50_257)
    assert sizes["qpa-gemma-wikitext2"] == (2048, 18, 256_000)
    assert sizes["quantum-peft-mistral-glue"] == (4096, 32, 32_000)
    assert sizes["quantum-peft-vit-cifar10"] == (768, 12, None)


def test_own_size_has_the_batch_of_the_recipe(recipes, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.GEOMETRIES, "qpa-gpt2-wikitext2", {"hidden_size": 128, "vocab_size": 900})
    study = load_study("recipes/qpa-gpt2-wikitext2.yaml")
    made = recipes._stand_in(study, tmp_path / "study", is_full=True)
    config = AutoConfig.from_pretrained(made.base)
    assert (config.hidden_size, config.vocab_size) == (128, 900)
    assert (made.training.batch_size, made.training.seq_len) == (study.training.batch_size, 512)
    batch = recipes._batch(config, made)
    assert batch["input_ids"].shape == (1, 512)
