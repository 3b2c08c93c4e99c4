"""What depends on the family of the base: tied heads, default targets, inputs, cards."""

import pytest
import torch
from variants import VARIANTS

import qpeft
from qpeft.errors import DataError, TiedWeightError


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3", "t5"], indirect=True)
@pytest.mark.parametrize("name", ["qpa with a network", "quantum_peft", "attached to lora"])
def test_tied_head_is_untied_before_merging(family, base, batch, adapters, name, tmp_path):
    model = VARIANTS[name].adapt(base, target_modules=["lm_head"], task_type=family.task_type)
    adapters.train(model, batch, steps=2)
    live = adapters.logits(model, batch)
    qpeft.export(model, tmp_path / "exported")
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(
            TiedWeightError, match=r"lm_head shares its weight with .*qpeft\.untie_lm_head"
        ):
            merge()
    qpeft.untie_lm_head(model)

    assert torch.equal(adapters.logits(model, batch), live)
    torch.testing.assert_close(
        adapters.logits(model.merge_and_unload(), batch), live, atol=1e-5, rtol=0
    )


def test_bottleneck_finds_the_feed_forward_block_of_each_layer(family, base):
    model = VARIANTS["bottleneck"].adapt(base, **family.options)
    names = model.base_model.targeted_module_names
    assert len(names) == (4 if family.task_type == "SEQ_2_SEQ_LM" else 2)
    assert all(name.endswith(family.feed_forward) for name in names)


@pytest.mark.parametrize("family", ["bert", "vit", "t5"], indirect=True)
def test_fit_frames_of_every_input(family, base, batch, adapters):
    model = VARIANTS["quantum_peft"].adapt(base, frame="gradient", frame_rank=8, **family.options)
    if family.task_type == "SEQ_CLS":
        with pytest.raises(DataError, match="add 'labels'"):
            qpeft.fit_frames(model, [{"input_ids": batch["input_ids"]}])
    qpeft.fit_frames(model, [batch])
    before = model(**batch).loss

    assert adapters.train(model, batch, steps=4)(**batch).loss < before


CLASSES = {
    "roberta": "AutoModelForSequenceClassification",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "ViTForImageClassification",
}


@pytest.mark.parametrize("family", CLASSES, indirect=True)
@pytest.mark.parametrize("method", ["quantum_peft", "qaa"])
def test_cards_name_the_class_of_the_base(request, family, base, method, tmp_path):
    model = VARIANTS[method].adapt(base, **family.options)
    qpeft.save(model, tmp_path / "adapter")
    if method == "quantum_peft":
        qpeft.export(model, tmp_path / "exported")
    for folder in tmp_path.iterdir():
        expected = CLASSES[request.node.callspec.params["family"]]
        assert f"from transformers import {expected}\n" in (folder / "README.md").read_text(
            encoding="utf-8"
        )
