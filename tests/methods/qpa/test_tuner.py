"""QPA with every variant of LoRA: initial values, training, errors."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.errors import ConfigError

SHAPES = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "down_proj": 1}},
    "modules_to_save": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
    "lm_head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dropout": {"lora_dropout": 0.1},
    "official_order": {"vector_order": "official"},
}


FORMS = {  # of the generator: the network of `adapters.qpa`, and the default, whose initial A and B are small
    "network": {},
    "default": {"hidden": (), "chunk_size": 8},  # 16 features
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_initial_logits_equal_stock_lora_and_the_loss_decreases(llama, ids, adapters, shape, form):
    stock_fields = {k: v for k, v in SHAPES[shape].items() if k != "vector_order"}
    stock_config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **stock_fields})
    stock = get_peft_model(copy.deepcopy(llama), stock_config).eval()
    model = adapters.qpa(llama, **FORMS[form], **SHAPES[shape]).eval()
    config = model.peft_config["default"]
    if form == "default":
        assert (config.features, config.hidden, config.init_mode) == (16, (), "small")
        torch.testing.assert_close(adapters.logits(model, ids), adapters.logits(stock, ids), atol=5e-2, rtol=0)
    else:
        assert torch.equal(adapters.logits(model, ids), adapters.logits(stock, ids))
    assert trainable_kinds(model) == (
        {"qpeft_generator", "modules_to_save"} if "modules" in shape else {"qpeft_generator"}
    )
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or "qpeft_generator" in name or "modules_to_save" in name
    for parameter in model.base_model.generators["default"].parameters():
        assert parameter.grad.norm() > 0
    adapters.train(model, ids, steps=20, lr=2e-3)
    assert model(input_ids=ids, labels=ids).loss < before - 0.01


def trainable_kinds(model):
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return {kind for kind in ("qpeft_generator", "modules_to_save", "lora_") if any(kind in n for n in names)}


def test_vector_order(llama, adapters):
    def labels(order):
        model = adapters.qpa(copy.deepcopy(llama), vector_order=order, target_modules=["q_proj", "v_proj"])
        return [slot.label for slot in model.base_model.binding("default").slots]

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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' depends on data or weights"),
        ({"target_modules": ["q_porj"]}, "target_modules 'q_porj' matches no module; nearest names: q_proj"),
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules 'c_attn' matches no module"),
        ({"target_modules": r".*\.nothing"}, "matches no module; this model has: .*q_proj"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save 'lm_haed' matches no module; nearest names: lm_head"),
        ({"rank_pattern": {"w_q": 2}}, "rank_pattern key 'w_q' matches no module"),
        ({"target_parameters": ["wieght"]}, "target_parameters 'wieght' matches no parameter; nearest names: weight"),
        ({"target_parameters": ["q_proj.weight"]}, "which is not a valid target"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
    ],
)
def test_invalid_options_raise_and_do_not_change_the_model(llama, adapters, settings, message):
    names = [n for n, _ in llama.named_modules()]
    with pytest.raises(ConfigError, match=message):
        adapters.qpa(llama, **settings)
    assert [n for n, _ in llama.named_modules()] == names


def test_failed_injection_does_not_change_the_base(llama, ids, adapters):
    names = [n for n, _ in llama.named_modules()]
    before = adapters.logits(llama, ids)
    with pytest.raises(ConfigError, match="too small"):
        adapters.qpa(llama, budget=10, chunk_size=None)
    assert [n for n, _ in llama.named_modules()] == names
    assert all(p.requires_grad for p in llama.parameters())
    assert not llama._forward_pre_hooks
    model = adapters.qpa(llama, target_modules=["k_proj"])
    assert torch.equal(adapters.logits(model, ids), before)
    with pytest.raises(ConfigError, match="too small"):
        model.add_adapter("more", qpeft.QPAConfig(r=2, target_modules=["q_proj"], budget=1))
    assert list(model.base_model.generators) == ["default"]
