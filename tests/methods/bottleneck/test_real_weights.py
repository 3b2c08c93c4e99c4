"""The feed-forward adapter, itself and written by QPA, on weights that were trained: a Llama that tells stories."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft


@pytest.fixture
def stories(shared):
    folder = shared / "models" / "stories260K"
    text = (shared / "data" / "grimm" / "GrimmsFairyTales.txt").read_text(encoding="utf-8")[20_000:40_000]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"][0]
    blocks = ids[: 16 * 128].view(16, 128)
    return folder, {"input_ids": blocks[:8], "labels": blocks[:8]}, {"input_ids": blocks[8:], "labels": blocks[8:]}


@pytest.mark.long
@pytest.mark.parametrize("generated", [False, True])
def test_learns_a_storytellers_new_words_from_an_exact_start(stories, models, generated, tmp_path):
    folder, seen, unseen = stories
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = models.logits(base, unseen)
    model = get_peft_model(base, qpeft.BottleneckConfig(bottleneck_size=8, task_type="CAUSAL_LM"))
    n_stock = model.get_nb_trainable_parameters()[0]
    if generated:
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))
        assert model.get_nb_trainable_parameters()[0] <= 0.5 * n_stock
    model.eval()
    assert torch.equal(models.logits(model, unseen), expected)
    with torch.no_grad():
        before = model(**unseen).loss.item()
    models.train(model, seen, steps=15, lr=2e-3)
    with torch.no_grad():
        assert model(**unseen).loss.item() < before - 0.02
    qpeft.save(model, tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = qpeft.load(fresh, tmp_path / "adapter").eval()
    assert torch.equal(models.logits(loaded, unseen), models.logits(model, unseen))
