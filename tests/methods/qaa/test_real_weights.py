"""QAA on weights that were trained: a Llama that tells stories."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft.methods.qaa.settings import ANSATZE


@pytest.fixture
def stories(shared):
    folder = shared / "models" / "stories260K"
    text = (shared / "data" / "grimm" / "GrimmsFairyTales.txt").read_text(encoding="utf-8")[20_000:40_000]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"][0]
    blocks = ids[: 16 * 128].view(16, 128)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return base, {"input_ids": blocks[:8], "labels": blocks[:8]}, {"input_ids": blocks[8:], "labels": blocks[8:]}


@pytest.mark.long
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_each_ansatz_lowers_the_loss_on_unseen_text_from_an_exact_start(stories, models, ansatz):
    base, seen, unseen = stories
    expected = models.logits(base, unseen)
    model = get_peft_model(base, qpeft.QAAConfig(ansatz=ansatz, task_type="CAUSAL_LM")).eval()
    assert torch.equal(models.logits(model, unseen), expected)
    with torch.no_grad():
        before = model(**unseen).loss.item()
    models.train(model, seen, steps=15, lr=2e-3)
    with torch.no_grad():
        assert model(**unseen).loss.item() < before - 0.02
    rows = qpeft.feature_report(model, [unseen])
    assert len(rows) == len(model.base_model.targeted_module_names)
    assert all(row.n_tokens == unseen["input_ids"].numel() for row in rows)
