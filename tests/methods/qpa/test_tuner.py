"""QPA with every variant of LoRA: initial values, training, errors."""

import copy

import torch
from peft import LoraConfig, get_peft_model


def test_vector_order(llama, adapters):
    def labels(order):
        model = adapters.qpa(copy.deepcopy(llama), vector_order=order, target_modules=["q_proj", "v_proj"])
        return [slot.label for slot in model.base_model.generators.bindings["default"].slots]

    stock = get_peft_model(copy.deepcopy(llama), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    names = [n for n, p in stock.base_model.model.named_parameters() if p.requires_grad]
    assert labels("peft") == [n.replace(".default", "") for n in names]
    assert labels("official")[:2] == labels("peft")[1::-1]
    assert "lora_B" in labels("official")[0]
    assert sorted(labels("official")) == sorted(labels("peft"))


def test_generate_evaluates_the_generator_once(llama, ids, adapters, monkeypatch):
    model = adapters.train(adapters.qpa(llama), ids)
    generator = model.base_model.generators["default"]
    runs = []
    monkeypatch.setattr(generator, "forward", counted(generator.forward, runs))
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert len(runs) <= 1


def counted(function, runs):
    def run(*args, **kwargs):
        runs.append(1)
        return function(*args, **kwargs)

    return run
