"""`qpeft.attach`: what a generator over a stock adapter refuses, and hosts with a peculiarity.

`test_life.py` has the other hosts, and `test_matrix.py` what every adapter does.
"""

import copy

import pytest
import tiny_models
import torch
from folders import edit_config, rewrite
from peft import (
    AdaLoraConfig,
    AdamssConfig,
    AdaptionPromptConfig,
    AutoPeftModelForCausalLM,
    CPTConfig,
    IA3Config,
    KasaConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    OSFConfig,
    PeftModel,
    PolyConfig,
    PrefixTuningConfig,
    RandLoraConfig,
    UniLoraConfig,
    get_peft_model,
)
from safetensors.torch import load_file

import qpeft
from qpeft.core.generator_holder import holder_of
from qpeft.errors import CheckpointError, ConfigError, TiedWeightError

LM = {"task_type": "CAUSAL_LM"}
QV = {**LM, "target_modules": ["q_proj", "v_proj"]}
LORA = LoraConfig(r=2, **QV)
TIED = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True, **LM)
HEAD = LoraConfig(r=2, modules_to_save=["lm_head"], **QV)
IA3 = IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], **LM)
PREFIX = PrefixTuningConfig(num_virtual_tokens=4, **LM)
UNI_LORA = UniLoraConfig(theta_d_length=64, **QV)


def small(**settings):
    return qpeft.QPAGeneratorConfig(
        **{"chunk_size": 16, "hidden": (6, 5), "n_layers": 3, **settings}
    )


def host_on(base, host, name="default"):
    return get_peft_model(base, copy.deepcopy(host), adapter_name=name).eval()


def attached(base, host, name="default", **settings):
    return qpeft.attach(host_on(copy.deepcopy(base), host, name), small(**settings))


def stored(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("host", [UNI_LORA, LORA, IA3])
def test_adapter_is_disabled_after_a_backward_pass(llama, ids, adapters, host):
    model = adapters.train(attached(llama, host), ids)
    live = adapters.logits(model, ids)
    model(input_ids=ids, labels=ids).loss.backward()
    before = [p.requires_grad for p in model.parameters()]
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
        assert torch.equal(adapters.logits(model, ids), adapters.logits(llama, ids))

    assert [p.requires_grad for p in model.parameters()] == before
    assert torch.equal(adapters.logits(model, ids), live)

    model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("host", [UNI_LORA, LORA, IA3])
def test_generator_is_frozen_with_its_host(llama, ids, host):
    model = attached(llama, host)
    tuner = model.base_model
    for trains in (
        lambda on: model.set_requires_grad("default", on),
        lambda on: tuner.set_requires_grad("default", on),
        lambda on: tuner.set_adapter("default", inference_mode=not on),
        lambda on: model.set_adapter("default", inference_mode=not on),
    ):
        for is_trained in (False, True):
            trains(is_trained)
            found = {p.requires_grad for p in model.generators.parameters()}
            assert found == {is_trained}
            assert model(input_ids=ids, labels=ids).loss.requires_grad == is_trained
    for names in ("other", []):
        tuner.set_requires_grad(names, False)
        assert all(p.requires_grad for p in model.generators.parameters())
    tuner.disable_adapter_layers()
    assert not any(p.requires_grad for p in model.parameters())
    tuner.enable_adapter_layers()
    assert all(p.requires_grad for p in model.generators.parameters())
    copied = copy.deepcopy(model)
    copied.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in copied.parameters())
    assert any(p.requires_grad for p in model.parameters())


def test_host_with_a_frozen_tensor_is_refused(llama):
    model = host_on(llama, LORA)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.lora_A["default"].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"lora_A\.weight is frozen"):
        qpeft.attach(model, small())


def test_export_of_kasa_leaves_the_base_as_it_is(llama, ids, adapters, tmp_path):
    model = attached(llama, LoraConfig(r=2, kasa_config=KasaConfig(), **QV))
    before = copy.deepcopy(model.get_base_model().state_dict())
    for number in range(2):
        qpeft.export(model, tmp_path / str(number))
    after = model.get_base_model().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_host_that_needs_task_ids_is_exported_with_a_probe(llama, ids, tmp_path):
    model = attached(llama, PolyConfig(r=2, n_tasks=2, n_skills=2, n_splits=2, **QV))
    with pytest.raises(ConfigError, match="task_ids"):
        qpeft.export(model, tmp_path / "exported")
    probe = {"input_ids": ids, "task_ids": torch.zeros(len(ids), dtype=torch.long)}
    assert qpeft.export(model, tmp_path / "exported", probe=probe).max_logit_difference == 0


def test_prefix_moves_with_the_model(llama):
    # PEFT takes the device of the inputs from the values of before, a GPU's in a run of `qpeft
    # train`
    assert attached(llama, PREFIX).to("meta").prompt_encoder["default"].embedding.weight.is_meta


def test_initial_values_are_saved_except_for_raw(llama, tmp_path):
    for mode in ("residual", "raw"):
        model = attached(llama, IA3, init_mode=mode)
        qpeft.save(model, tmp_path / mode)
        initial = [
            tensor for name, tensor in stored(tmp_path / mode).items() if name.endswith(".initial")
        ]
        assert len(initial) == (mode == "residual")


def test_replicated_layers(llama, ids, adapters, tmp_path):
    model = adapters.train(
        attached(llama, LoraConfig(r=2, layer_replication=[[0, 1], [0, 2]], **QV)), ids
    )
    live = adapters.logits(model, ids)
    qpeft.export(model, tmp_path / "exported")
    qpeft.save(model, tmp_path / "compact")
    exported = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "exported").eval()

    torch.testing.assert_close(adapters.logits(exported, ids), live, atol=1e-6, rtol=0)
    assert torch.equal(adapters.logits(qpeft.load(llama, tmp_path / "compact"), ids), live)
    with pytest.raises(TiedWeightError):
        model.merge_adapter()


@pytest.mark.parametrize("name", ["0", "layers", "q_proj"])
def test_adapter_named_like_a_module(llama, ids, adapters, tmp_path, name):
    model = adapters.train(attached(llama, HEAD, name), ids)
    qpeft.save(model, tmp_path)
    others = [key for key in stored(tmp_path / name) if "qpeft_generator" not in key]

    assert len(others) == 1  # the trained head
    assert torch.equal(
        adapters.logits(qpeft.load(llama, tmp_path / name), ids), adapters.logits(model, ids)
    )


# -- what is refused


def changed(model, change):
    change(model)
    return model


def share_a_tensor(model):
    first, second = (layer.self_attn.v_proj.ia3_l for layer in model.get_base_model().model.layers)
    second["default"] = first["default"]


MODELS = {  # by what the message names
    "LlamaForCausalLM has no adapter": lambda base: base,
    "generated already": lambda base: attached(base, LORA),
    "generated": lambda base: get_peft_model(
        base, qpeft.QPAConfig(chunk_size=16, target_modules=["q_proj"])
    ),
    "is_trainable=True": lambda base: host_on(base, LORA).requires_grad_(False),
    "no tensor of adapter": lambda base: host_on(
        base, AdaptionPromptConfig(adapter_len=2, adapter_layers=1, **LM)
    ),
    **{
        repr(init): lambda base, init=init: changed(
            host_on(base, LORA),
            lambda model: setattr(model.peft_config["default"], "init_lora_weights", init),
        )
        for init in ("loftq", "pissa")
    },
    "AdaLoraConfig": lambda base: host_on(base, AdaLoraConfig(total_step=10, **QV)),
    r"shares .*layers\.1.*": lambda base: changed(host_on(base, IA3), share_a_tensor),
    r"shares .*embed_tokens": lambda _: host_on(tiny_models.llama(tie_word_embeddings=True), TIED),
    "alphabetical": lambda base: host_on(
        base, LoraConfig(r=2, alpha_pattern={"q_proj": 1, "layers.1.*": 2}, **QV)
    ),
    "of rank_pattern match .* alphabetical": lambda base: host_on(
        base, LoraConfig(r=2, rank_pattern={"q_proj": 1, "layers.1.*": 2}, **QV)
    ),
    "use_asa": lambda base: host_on(base, AdamssConfig(r=8, num_subspaces=2, use_asa=True, **QV)),
    "hook that changes its gradient": lambda base: host_on(base, OSFConfig(effective_rank=4, **QV)),
    "prompt_encoder.* has a hook": lambda base: host_on(
        base,
        CPTConfig(
            cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 4], **LM
        ),
    ),
    "coft": lambda base: host_on(base, OFTConfig(r=0, oft_block_size=4, coft=True, **QV)),
    "unmerge_adapter": lambda base: changed(
        host_on(base, LORA), lambda model: model.merge_adapter()
    ),
    "default, b": lambda base: changed(
        host_on(base, IA3), lambda model: model.add_adapter("b", copy.deepcopy(IA3))
    ),
}


@pytest.mark.parametrize("named", MODELS)
def test_model_that_cannot_be_generated(llama, named):
    with pytest.raises(ConfigError, match=named):
        qpeft.attach(MODELS[named](llama), small())


@pytest.mark.parametrize(
    "generator, named",
    [
        ({"budget": 0.5}, "QPAGeneratorConfig"),
        (qpeft.QPAConfig(), "QPAGeneratorConfig"),
        (qpeft.QPAGeneratorConfig(budget=5), "budget"),
        (qpeft.QPAGeneratorConfig(init_mode="small"), "init_mode"),
    ],
)
def test_generator_that_is_refused_keeps_the_stock_adapter(llama, ids, adapters, generator, named):
    model = host_on(llama, LORA)
    before = adapters.logits(model, ids)
    with pytest.raises(ConfigError, match=named):
        qpeft.attach(model, generator)
    assert torch.equal(adapters.logits(adapters.train(model, ids, steps=0), ids), before)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("host", [LORA, PREFIX])
def test_another_adapter(llama, ids, adapters, tmp_path, host):
    model = attached(llama, host)
    before = adapters.logits(model, ids)
    uses = (
        lambda: model.add_adapter("b", LORA),
        lambda: model.load_adapter(tmp_path, "b"),
        lambda: model.delete_adapter("default"),
        lambda: model.add_weighted_adapter(["default"], [1.0], "sum"),
    )
    for use in uses:
        with pytest.raises(ConfigError, match="one adapter"):
            use()

    assert torch.equal(adapters.logits(model, ids), before)


@pytest.mark.parametrize(
    "damage, named",
    [
        (
            lambda f: rewrite(
                f, lambda t: {k: v for k, v in t.items() if not k.endswith("initial")}
            ),
            "missing",
        ),
        (lambda f: edit_config(f, generator={"n_layers": 0}), "n_layers"),
    ],
)
def test_damaged_folder_changes_nothing(llama, tmp_path, damage, named):
    qpeft.save(attached(llama, LORA), tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        qpeft.load(llama, tmp_path)
    assert not any("lora" in name for name, _ in llama.named_modules())


@pytest.mark.parametrize("option", ["low_cpu_mem_usage", "autocast_adapter_dtype"])
def test_option_of_peft_that_would_be_ignored_is_refused(llama, tmp_path, option):
    qpeft.save(attached(copy.deepcopy(llama), LORA), tmp_path)
    with pytest.raises(ConfigError, match=f"{option} has no meaning"):
        qpeft.load(llama, tmp_path, **{option: True})


def test_folder_of_a_host_with_another_scale_is_refused(llama, tmp_path):
    """PEFT would read the values alone, and scale them as before."""
    of_8, of_32 = (LoraConfig(r=2, lora_alpha=alpha) for alpha in (8, 32))
    model = attached(copy.deepcopy(llama), of_8)
    qpeft.save(model, tmp_path / "same")
    qpeft.save(attached(llama, of_32), tmp_path / "other")

    with pytest.raises(CheckpointError, match="scales them otherwise"):
        model.load_adapter(tmp_path / "other", "default")

    model.load_adapter(tmp_path / "same", "default")


def test_stock_and_compact_folders_are_not_confused(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base")
    base = type(llama).from_pretrained(tmp_path / "base")
    host_on(copy.deepcopy(llama), IA3).save_pretrained(tmp_path / "stock")
    model = attached(base, IA3)

    with pytest.raises(CheckpointError, match="attached"):
        model.load_adapter(tmp_path / "stock", "default")

    qpeft.save(model, tmp_path / "compact")
    for load in (
        lambda folder: PeftModel.from_pretrained(llama, folder),
        AutoPeftModelForCausalLM.from_pretrained,
    ):
        with pytest.raises(ConfigError, match=r"qpeft\.load"):
            load(tmp_path / "compact")


@pytest.mark.parametrize(
    "host, change",
    [
        (PREFIX, {"head_dim": 16}),
        (PREFIX, {"num_hidden_layers": 3}),
        (IA3, {"intermediate_size": 32}),
    ],
)
def test_another_base(llama, tmp_path, host, change):
    qpeft.save(attached(llama, host), tmp_path)
    with pytest.raises(CheckpointError, match="base model"):
        qpeft.load(tiny_models.llama(**change), tmp_path)


FUNCTIONS = [LoHaConfig(r=2, **QV), RandLoraConfig(r=2, **QV)]  # they use autograd Functions


@pytest.mark.parametrize("host", FUNCTIONS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_reaches_a_host_with_autograd_functions_under_checkpointing(
    llama, ids, adapters, host, use_reentrant
):
    model = attached(llama, host, init_mode="raw").train()
    model(input_ids=ids, labels=ids).loss.backward()
    expected = adapters.gradients(model)
    assert any(gradient.any() for gradient in expected.values())
    model.zero_grad()
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(input_ids=ids, labels=ids).loss.backward()

    torch.testing.assert_close(adapters.gradients(model), expected)


def test_gradient_reaches_loha_through_one_layer_alone(llama, adapters):
    model = attached(llama, FUNCTIONS[0], init_mode="raw").train()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    inputs = torch.randn(2, layer.in_features)

    def by_formula():
        """The layer's output, without the autograd Function of PEFT."""
        factors = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        w1_a, w1_b, w2_a, w2_b = (getattr(layer, name)["default"] for name in factors)
        update = (w1_a @ w1_b) * (w2_a @ w2_b) * layer.scaling["default"]
        return inputs @ (layer.get_base_layer().weight + update).t()

    def gradients(output):
        model.zero_grad()
        output.square().sum().backward()
        return adapters.gradients(model)

    for _ in range(2):
        of_layer = gradients(layer(inputs))
        assert any(gradient.any() for gradient in of_layer.values())
        torch.testing.assert_close(of_layer, gradients(by_formula()), rtol=1e-4, atol=1e-5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1  # a write that PyTorch's version counter does not record


def test_gradient_reaches_one_layer_alone_of_a_loaded_adapter(llama, tmp_path):
    base = copy.deepcopy(llama)
    qpeft.save(attached(llama, LORA, init_mode="raw"), tmp_path)
    model = qpeft.load(base, tmp_path, is_trainable=True)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer(torch.randn(2, layer.in_features)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def disable(model):
    with model.disable_adapter():
        pass


CHANGES = {
    "disabled": disable,
    "set": lambda model: model.set_adapter("default"),
    "frozen": lambda model: [model.set_requires_grad("default", on) for on in (False, True)],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("host", [LORA, IA3Config(), *FUNCTIONS])
def test_gradient_reaches_one_layer_alone_after_a_change_by_peft(llama, host, change):
    """PEFT sets requires_grad of the tensors that it finds in IA3's layers, and others'."""
    model = attached(llama, host, init_mode="raw")
    CHANGES[change](model)
    layer = model.get_base_model().model.layers[0].self_attn.v_proj
    layer(torch.randn(2, layer.in_features)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_layer_that_is_called_alone_is_not_counted_as_a_generator(llama):
    model = attached(llama, LORA)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    keys, within = set(model.state_dict()), []
    layer.base_layer.register_forward_hook(lambda *_: within.append(set(model.state_dict())))
    layer(torch.randn(2, layer.in_features))
    model.set_adapter("default")

    assert within == [keys]
    assert set(model.state_dict()) == keys
    assert list(holder_of(model)) == ["default"]


def test_autograd_function_of_a_strangers_layer_loses_no_gradient_silently(llama):
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            ctx.shape = tensor.shape
            return tensor.sum()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.expand(ctx.shape)

    model = attached(llama, LORA)
    tensor = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    with pytest.raises(RuntimeError, match="invalid gradient"):
        Sum.apply(tensor).backward()
