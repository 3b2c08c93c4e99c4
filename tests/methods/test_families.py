"""Every method on every family of models: exact start, falling loss, folders, merging, the head."""

import pytest
import torch

import qpeft
from qpeft.errors import DataError, TiedWeightError

GENERATED = ("qpa", "quantum_peft")
OWN = ("bottleneck", "qaa")  # without an equivalent in stock PEFT
TIED = ("gpt2", "qwen3", "gemma", "gemma2", "gemma3", "t5")


@pytest.mark.parametrize("family", TIED, indirect=True)
@pytest.mark.parametrize("method", GENERATED)
def test_tied_head_is_untied_before_merging(family, base, batch, models, method, tmp_path):
    small = {"chunk_size": 16, "hidden": (4,)} if method == "qpa" else {}
    model = models.adapt(base, method, family, target_modules=["lm_head"], **small)
    models.train(model, batch, steps=2)
    live = models.logits(model, batch)
    qpeft.export(model, tmp_path / "exported")
    with pytest.raises(TiedWeightError, match=r"lm_head shares its weight with .*qpeft\.untie_lm_head"):
        model.merge_and_unload()
    qpeft.untie_lm_head(model)
    assert torch.equal(models.logits(model, batch), live)
    merged = model.merge_and_unload()
    torch.testing.assert_close(models.logits(merged, batch), live, atol=1e-5, rtol=0)


def test_bottleneck_finds_the_feed_forward_block_of_each_layer(family, base, models):
    model = models.adapt(base, "bottleneck", family)
    names = model.base_model.targeted_module_names
    assert len(names) == (4 if family.task_type == "SEQ_2_SEQ_LM" else 2)
    assert all(name.endswith(family.feed_forward) for name in names)


@pytest.mark.parametrize("family", ["bert", "vit", "t5"], indirect=True)
def test_fit_frames_of_every_input(family, base, batch, models):
    model = models.adapt(base, "quantum_peft", family, frame="gradient", frame_rank=8)
    qpeft.fit_frames(model, [batch])
    losses = models.train(model, batch)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_frames_of_a_classifier_need_labels(family, base, batch, models):
    model = models.adapt(base, "quantum_peft", family, frame="gradient", frame_rank=8)
    with pytest.raises(DataError, match="add 'labels'"):
        qpeft.fit_frames(model, [{"input_ids": batch["input_ids"]}])


@pytest.mark.parametrize("family", ["roberta", "vit", "t5"], indirect=True)
@pytest.mark.parametrize("method", [*GENERATED, *OWN])
def test_cards_name_the_class_of_the_base(family, base, batch, models, method, tmp_path):
    model = models.adapt(base, method, family)
    qpeft.save(model, tmp_path / "adapter")
    folders = ["adapter"]
    if method not in OWN:
        qpeft.export(model, tmp_path / "exported")
        folders.append("exported")
    expected = {
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
        None: "ViTForImageClassification",
    }
    for folder in folders:
        card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        assert f"from transformers import {expected[family.task_type]}\n" in card
