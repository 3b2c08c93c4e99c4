"""The feed-forward adapter as a PEFT tuner: its equation, its start, several at once, folders, dtypes, refusals."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import qpeft
from qpeft.errors import ConfigError, UnsupportedTypeError

B = 4


def adapted(base, **settings):
    return get_peft_model(base, qpeft.BottleneckConfig(**{"bottleneck_size": B, "task_type": "CAUSAL_LM", **settings}))


def tensors(model, adapter_name="default"):
    """The adapter's parameters by their names in the base model, the adapter's left out."""
    return {
        name.removeprefix("base_model.model.").replace(f".{adapter_name}", ""): parameter
        for name, parameter in model.named_parameters()
        if ".bottleneck_" in name and f".{adapter_name}." in name
    }


def shake(model, adapter_name="default"):
    """Other numbers than the start's, so that the adapter does something."""
    with torch.no_grad():
        for parameter in tensors(model, adapter_name).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_output_is_the_written_equation(llama, activation):
    block = copy.deepcopy(llama.model.layers[0].mlp)
    model = shake(adapted(llama, activation=activation))
    layer = model.base_model.model.model.layers[0].mlp
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    x = torch.randn(3, 5, 16)
    y = block(x)
    act = getattr(nn.functional, activation)
    expected = y + act(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected)
    assert not torch.allclose(layer(x), y, atol=1e-2)


@pytest.mark.parametrize("targets", [None, ["mlp"], ["c_proj"], ["attn"], "all-linear", r".*\.1\.mlp", ["lm_head"]])
def test_start_is_bit_equal_to_the_base_and_learns(gpt2, ids, adapters, targets):
    before = adapters.logits(gpt2, ids)
    model = adapted(gpt2, target_modules=targets)
    assert torch.equal(adapters.logits(model, ids), before)
    loss = model(input_ids=ids, labels=ids).loss.item()
    adapters.train(model, ids, steps=5, lr=2e-2)
    assert model(input_ids=ids, labels=ids).loss.item() < loss
    with model.disable_adapter():
        assert torch.equal(adapters.logits(model, ids), before)
    assert torch.equal(adapters.logits(model.unload(), ids), before)


def test_count_and_names(gpt2):
    model = adapted(gpt2)
    widths = [16, 16]
    assert model.get_nb_trainable_parameters()[0] == sum(2 * d * B + B + d for d in widths)
    assert [(name, list(p.shape)) for name, p in tensors(model).items()][:4] == [
        ("transformer.h.0.mlp.bottleneck_down.weight", [B, 16]),
        ("transformer.h.0.mlp.bottleneck_down.bias", [B]),
        ("transformer.h.0.mlp.bottleneck_up.weight", [16, B]),
        ("transformer.h.0.mlp.bottleneck_up.bias", [16]),
    ]


def test_start_comes_from_the_seed_alone(llama):
    def drawn(seed, noise):
        torch.manual_seed(noise)
        return torch.cat([p.flatten() for p in tensors(adapted(copy.deepcopy(llama), seed=seed)).values()])

    assert torch.equal(drawn(3, noise=0), drawn(3, noise=1))
    assert not torch.equal(drawn(3, noise=0), drawn(4, noise=0))
    assert drawn(3, noise=0).abs().max() <= 16**-0.5


def test_second_adapter_on_all_linear_maps(gpt2):
    model = adapted(gpt2, target_modules="all-linear")
    model.add_adapter("other", qpeft.BottleneckConfig(bottleneck_size=2, target_modules="all-linear"))
    assert tensors(model, "other").keys() == tensors(model).keys()
    assert len(tensors(model)) == 2 * 4 * 4


def test_active_adapters_read_the_same_output_and_add_up(llama):
    model = shake(adapted(llama))
    model.add_adapter("other", qpeft.BottleneckConfig(bottleneck_size=2))
    shake(model, "other")
    layer, x, outputs = model.base_model.model.model.layers[0].mlp, torch.randn(2, 16), {}
    for name in ("default", "other", ["default", "other"]):
        model.base_model.set_adapter(name)
        outputs[str(name)] = layer(x)
    expected = outputs["default"] + outputs["other"] - layer.base_layer(x)
    torch.testing.assert_close(outputs["['default', 'other']"], expected)


def test_saved_and_loaded(gpt2, ids, adapters, tmp_path):
    fresh = copy.deepcopy(gpt2)
    model = adapters.train(adapted(gpt2, modules_to_save=["ln_f"]), ids)
    expected = adapters.logits(model, ids)
    model.save_pretrained(tmp_path / "plain")
    qpeft.save(model, tmp_path / "ours")
    for folder, load in (("plain", PeftModel.from_pretrained), ("ours", qpeft.load)):
        loaded = load(copy.deepcopy(fresh), tmp_path / folder).eval()
        assert torch.equal(adapters.logits(loaded, ids), expected)
    lazily = qpeft.load(copy.deepcopy(fresh), tmp_path / "ours", low_cpu_mem_usage=True).eval()
    assert torch.equal(adapters.logits(lazily, ids), expected)
    trained_on = qpeft.load(copy.deepcopy(fresh), tmp_path / "ours", is_trainable=True)
    assert trained_on.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


def test_auto_class_knows_the_folder(gpt2, ids, adapters, tmp_path):
    gpt2.save_pretrained(tmp_path / "base")
    base = type(gpt2).from_pretrained(tmp_path / "base")
    model = adapters.train(adapted(base), ids)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))


def test_trainer_resumes_to_the_same_numbers(llama, adapters, tmp_path):
    tokens = torch.randint(50, (16, 8))
    rows = [{"input_ids": t, "labels": t} for t in tokens]

    def trained(folder, steps, resume=None):
        args = TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=2,
            save_steps=2,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(adapted(copy.deepcopy(llama)), args, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return list(tensors(trainer.model).values())

    unbroken = trained("whole", 4)
    trained("broken", 2)
    resumed = trained("broken", 4, resume=str(tmp_path / "broken/checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def test_float32_adapter_on_a_bfloat16_base(llama, ids, adapters):
    before = adapters.logits(llama.bfloat16(), ids)
    model = adapted(llama)
    assert {p.dtype for p in tensors(model).values()} == {torch.float32}
    after = adapters.logits(model, ids)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, before)
    model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad.any() for p in tensors(model).values())


def test_adapter_in_the_dtype_of_its_base_if_asked(llama, ids, adapters):
    config = qpeft.BottleneckConfig(bottleneck_size=B)
    model = get_peft_model(llama.bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in tensors(model).values()} == {torch.bfloat16}
    assert adapters.logits(model, ids).dtype == torch.bfloat16


def test_under_autocast(llama, ids):
    model = shake(adapted(llama))
    full = model(input_ids=ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(full.item(), rel=2e-2)
    assert {p.grad.dtype for p in tensors(model).values()} == {torch.float32}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(llama, ids, adapters, use_reentrant):
    model = shake(adapted(llama)).train()
    model(input_ids=ids, labels=ids).loss.backward()
    expected = adapters.gradients(model)
    model.zero_grad()
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(input_ids=ids, labels=ids).loss.backward()
    found = adapters.gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_dropout_acts_in_training_only(llama, ids, adapters):
    model = shake(adapted(llama, dropout=0.5)).train()
    assert not torch.equal(adapters.logits(model, ids), adapters.logits(model, ids))
    model.eval()
    assert torch.equal(adapters.logits(model, ids), adapters.logits(model, ids))


def test_merging_is_refused_and_leaves_the_model_alone(llama, ids, adapters):
    model = shake(adapted(llama))
    expected = adapters.logits(model, ids)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ConfigError, match=r"not linear.*qpeft\.save"):
            merge()
    assert torch.equal(adapters.logits(model, ids), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck_size": 0}, r"bottleneck_size must be a whole number from 1, got 0"),
        ({"bottleneck_size": 2.5}, r"bottleneck_size must be a whole number"),
        ({"activation": "tanhh"}, r"unknown activation 'tanhh'; choose one of gelu, relu, silu"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be"),
        ({"seed": -1}, r"seed must be a whole number from 0"),
        ({"target_modules": []}, r"target_modules is empty"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        qpeft.BottleneckConfig(**settings)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["mlpp"], ConfigError, r"target_modules 'mlpp' matches no module; nearest names: mlp"),
        (["mlp", "c_fc"], ConfigError, r"match transformer.h.0.mlp and transformer.h.0.mlp.c_fc within it"),
        (["wte"], UnsupportedTypeError, r"width of transformer.wte \(Embedding\) cannot be known"),
        (["h"], UnsupportedTypeError, r"width of transformer.h \(ModuleList\) cannot be known"),
        (["transformer"], UnsupportedTypeError, r"width of transformer \(GPT2Model\) cannot be known"),
        (["act"], UnsupportedTypeError, r"width of transformer.h.0.mlp.act"),
    ],
)
def test_targets_that_cannot_be_followed_are_refused_before_any_work(gpt2, targets, error, message):
    names = [name for name, _ in gpt2.named_modules()]
    with pytest.raises(error, match=message):
        adapted(gpt2, target_modules=targets)
    assert [name for name, _ in gpt2.named_modules()] == names
    assert all(p.requires_grad for p in gpt2.parameters())


def test_second_adapter_within_the_first_is_refused(gpt2, ids, adapters):
    model = shake(adapted(gpt2))
    expected = adapters.logits(model, ids)
    with pytest.raises(ConfigError, match=r"match transformer.h.0.mlp and transformer.h.0.mlp.c_proj within it"):
        model.add_adapter("inner", qpeft.BottleneckConfig(target_modules=["c_proj"]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(adapters.logits(model, ids), expected)


def test_model_without_a_feed_forward_block_of_a_known_name():
    with pytest.raises(ConfigError, match=r"name target_modules yourself, of: first, second"):
        get_peft_model(nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.ReLU()}), qpeft.BottleneckConfig())


class Pair(nn.Module):
    """A block with an output that is no tensor."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return {"x": self.linear(x)}


def test_output_that_is_no_tensor_is_refused_in_words():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), Pair()), qpeft.BottleneckConfig(target_modules=["1"]))
    with pytest.raises(UnsupportedTypeError, match=r"follows Pair, which gave dict"):
        model(torch.zeros(1, 4))


def test_router_of_experts_takes_the_width_of_the_config(ids, adapters):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
    )
    base = Qwen2MoeForCausalLM(config).eval()
    expected = adapters.logits(base, ids)
    model = adapted(base)
    assert model.base_model.model.model.layers[0].mlp.width == 16
    assert torch.equal(adapters.logits(model, ids), expected)
    assert not torch.equal(adapters.logits(shake(model), ids), expected)


def test_config_is_not_changed_by_use(gpt2, llama):
    config = qpeft.BottleneckConfig(bottleneck_size=B)
    model = get_peft_model(gpt2, config)
    assert config.target_modules is None
    assert model.peft_config["default"].target_modules == ["mlp"]
    get_peft_model(llama, config)


def test_qpa_generates_it(gpt2, ids, adapters, tmp_path):
    fresh = copy.deepcopy(gpt2)
    model = adapted(gpt2)
    expected, numbers = adapters.logits(model, ids), model.get_nb_trainable_parameters()[0]
    model = qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=32, hidden=(4,), n_layers=2))
    assert torch.equal(adapters.logits(model, ids), expected)
    assert model.get_nb_trainable_parameters()[0] < numbers
    loss = model(input_ids=ids, labels=ids).loss.item()
    adapters.train(model, ids, steps=5)
    assert model(input_ids=ids, labels=ids).loss.item() < loss
    qpeft.save(model, tmp_path / "adapter")
    loaded = qpeft.load(fresh, tmp_path / "adapter").eval()
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))
    with pytest.raises(ConfigError, match="not linear"):
        model.merge_and_unload()


@pytest.mark.parametrize("generated", [True, False])
def test_no_stock_folder_can_hold_it(gpt2, tmp_path, generated):
    model = adapted(gpt2)
    if generated:
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=32, hidden=(4,), n_layers=2))
    with pytest.raises(ConfigError, match="cannot be written as a stock PEFT adapter"):
        qpeft.export(model, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_excluded_modules_stay_as_they_are(gpt2):
    model = adapted(gpt2, target_modules="all-linear", exclude_modules=["c_attn"])
    assert {name.rpartition(".")[2] for name in model.base_model.targeted_module_names} == {"c_proj", "c_fc"}


def test_saved_folder_says_that_it_needs_qpeft(gpt2, tmp_path):
    qpeft.save(adapted(gpt2), tmp_path / "adapter")
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert "KeyError: 'QPEFT_BOTTLENECK'" in card
    assert "import qpeft" in card
    assert "[More Information Needed]" not in card


def test_rows_of_a_batch_have_one_adapter(gpt2, ids):
    model = adapted(gpt2)
    with pytest.raises(ConfigError, match="adapter_names gives each row"):
        model(input_ids=ids, adapter_names=["default", "default", "default"])
