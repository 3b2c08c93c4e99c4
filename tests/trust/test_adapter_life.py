"""Rows U1 to U5 of issue 67: what PEFT's own test suite found. Stock LoRA is the reference."""

import copy
from functools import partial

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification
from variants import VARIANTS, Variant, move, trained

import qpeft
from qpeft.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
LORA = Variant("lora", LoraConfig, {"r": 4, "target_modules": "all-linear"})
GENERATED = ["qpa", "quantum_peft", "sora"]


def variant_of(name):
    return LORA if name == "lora" else VARIANTS[name]


# -- U1: PEFT refuses to merge


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("make", [LoraConfig, partial(qpeft.QPAConfig, chunk_size=4)])
def test_u1_training_continues_after_a_grouped_convolution_was_not_merged(make):
    base = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 1, 3))
    model = get_peft_model(base, make(r=2, target_modules=["0"], modules_to_save=["1"]))
    for _ in range(2):
        with pytest.raises(NotImplementedError):
            model.merge_and_unload()
        model(torch.randn(2, 4, 5)).square().sum().backward()

    assert all(p.grad is not None for p in trained(model))


@pytest.mark.parametrize("name", ["lora", *GENERATED, "attached to lora"])
def test_u1_training_continues_after_nan_was_not_merged(llama, ids, adapters, name):
    """The first map alone has the NaN, and PEFT stops there."""
    model = move(variant_of(name).adapt(llama))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    value = layer.weight[0, 0].item()
    layer.weight.data[0, 0] = torch.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="NaNs detected"):
            model.merge_and_unload(safe_merge=True)
    layer.weight.data[0, 0] = value
    before = adapters.logits(model, ids)
    adapters.train(model, ids, steps=1)

    assert all(p.grad is not None for p in trained(model))
    assert not torch.equal(adapters.logits(model, ids), before)


# -- an adapter that PEFT refuses half-way


@pytest.mark.parametrize("name", ["lora", "quantum_peft", "sora"])
def test_adapter_in_use_stays_active_after_another_one_was_refused(llama, ids, adapters, name):
    """The first layer that PEFT meets has only the refused adapter."""
    variant = variant_of(name)
    model = move(variant.adapt(llama, target_modules=["v_proj"]))
    before = adapters.logits(model, ids)
    with pytest.raises(ValueError, match="not supported"):
        model.add_adapter("b", variant.make_config(target_modules=["q_proj", "norm"]))
    assert model.base_model.active_adapter in ("default", ["default"])
    model.add_adapter("b", variant.make_config(target_modules=["q_proj", "v_proj"]))
    assert model.active_adapters == ["default"]
    assert torch.equal(adapters.logits(model, ids), before)


# -- names


@pytest.mark.parametrize("name", ["mlp", "feature"])
def test_adapter_with_the_name_of_a_part_of_its_generator_is_saved_and_loaded(
    llama, ids, adapters, tmp_path, name
):
    config = qpeft.QPAConfig(r=2, chunk_size=64, target_modules=["q_proj"])
    model = move(get_peft_model(copy.deepcopy(llama), config, adapter_name=name))
    model.save_pretrained(tmp_path)
    loaded = qpeft.load(copy.deepcopy(llama), tmp_path / name, adapter_name=name)
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))

    host = get_peft_model(copy.deepcopy(llama), LoraConfig(target_modules=["q_proj"]), name)
    with pytest.raises(ConfigError, match=f"cannot be called '{name}', the name of a part"):
        qpeft.attach(host, qpeft.QPAGeneratorConfig(chunk_size=64))
    assert type(host).__module__.startswith("peft")


# -- U2: some layers


SETTINGS = {
    "as given": {},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.(query|value)"},
    "names": {"target_modules": [f"bert.encoder.layer.{n}.attention.self.key" for n in (0, 1)]},
}
OWN_TUNERS = {
    "qaa": qpeft.QAAConfig,
    "cua": qpeft.CUAConfig,
    "quic": qpeft.QuICConfig,
    "quanta": qpeft.QuanTAConfig,
    "bottleneck": qpeft.BottleneckConfig,
}


@pytest.fixture(scope="module")
def bert():
    sizes = {**tiny_models.SHAPE, "vocab_size": 50}
    return BertForMaskedLM(BertConfig(**sizes))


@pytest.mark.parametrize("targets", SETTINGS)
@pytest.mark.parametrize("method", OWN_TUNERS)
def test_u2_only_the_chosen_layers_are_adapted_and_counted(bert, method, targets):
    def config(**more):
        return OWN_TUNERS[method](**SETTINGS[targets], **more)

    every = get_peft_model(copy.deepcopy(bert), config()).targeted_module_names
    model = get_peft_model(copy.deepcopy(bert), config(layers_to_transform=[1]))
    chosen = model.targeted_module_names

    assert chosen == [name for name in every if ".layer.1." in name]

    plan = qpeft.plan(bert, config(layers_to_transform=[1]))
    assert plan.target_modules == chosen
    assert plan.trainable == sum(p.numel() for p in trained(model))
    with pytest.raises(ConfigError, match=r"none of the .* targets"):
        get_peft_model(copy.deepcopy(bert), config(layers_to_transform=[9]))


@pytest.mark.parametrize("name", GENERATED)
def test_u2_pattern_with_layers_is_refused_as_by_stock_lora(name):
    settings = {"target_modules": "all-linear", "layers_to_transform": [1]}
    for config in (LoraConfig, VARIANTS[name].config):
        with pytest.raises(ValueError, match="layers_to_transform"):
            config(**settings)


# -- U3: what other adapters do to those that are there


@pytest.mark.filterwarnings("ignore:Adapter one was active which is now deleted")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("name", GENERATED)
def test_adapter_that_is_chosen_while_they_are_disabled_is_trained_after(llama, name):
    def trained_after(variant):
        model = variant.adapt(copy.deepcopy(llama), adapter_name="one")
        model.add_adapter("two", variant.make_config())
        with model.disable_adapter():
            model.set_adapter("two")
        keys = [key for key, p in model.named_parameters() if p.requires_grad]
        return [a for a in model.peft_config if f".{a}." in "".join(keys)]

    assert trained_after(VARIANTS[name]) == trained_after(LORA) == ["two"]


@pytest.mark.filterwarnings("ignore:Adapter one was active which is now deleted")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("name", GENERATED)
def test_u3_frozen_adapters_stay_frozen_as_those_of_stock_lora(llama, tmp_path, name):
    def history(variant):
        saved = variant.adapt(copy.deepcopy(llama))
        saved.save_pretrained(tmp_path / variant.method)
        model = variant.adapt(copy.deepcopy(llama), adapter_name="one")
        states = []

        def add(adapter):
            model.add_adapter(adapter, variant.make_config())

        def load(adapter, is_trainable):
            model.load_adapter(tmp_path / variant.method, adapter, is_trainable=is_trainable)

        for action in (
            lambda: model.set_requires_grad("one", False),
            lambda: add("two"),
            lambda: load("three", is_trainable=True),
            lambda: load("four", is_trainable=False),
            lambda: model.delete_adapter("two"),
            lambda: model.set_requires_grad("three", True),
            lambda: model.delete_adapter("four"),
            lambda: add("five"),
            lambda: model.delete_adapter("one"),  # the active one
        ):
            action()
            keys = [key for key, p in model.named_parameters() if p.requires_grad]
            states.append([a for a in model.peft_config if f".{a}." in "".join(keys)])
        return states

    assert history(VARIANTS[name]) == history(LORA)


def test_u3_failed_addition_changes_nothing(llama):
    model = VARIANTS["qpa"].adapt(llama)
    model.set_requires_grad("default", False)
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    with pytest.raises(ConfigError):
        model.add_adapter("other", VARIANTS["qpa"].make_config(budget=1))
    assert {key: p.requires_grad for key, p in model.named_parameters()} == before


# -- U4, U5: messages


@pytest.mark.parametrize("lie_rank", [1, 16])
def test_u4_factor_that_is_too_narrow_for_lie_names_its_module(lie_rank):
    base = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 1))
    config = qpeft.QuantumPeftConfig(
        r=lie_rank, family="lie", lie_rank=lie_rank, target_modules=["0", "1"]
    )
    name, width = ("1", 1) if lie_rank == 1 else ("0", 16)

    with pytest.raises(ConfigError, match=rf"one of {name} has width {width}.*exclude the module"):
        get_peft_model(base, config)


@pytest.mark.parametrize("name", [*GENERATED, "quic, 1"])
def test_u5_unknown_target_of_a_second_adapter_suggests_modules_of_the_base(llama, name):
    variant = VARIANTS[name]
    wrong = {"target_modules": ["qproj"]}
    with pytest.raises(ConfigError, match="did you mean 'q_proj'") as of_first:
        variant.adapt(copy.deepcopy(llama), **wrong)

    model = variant.adapt(llama, modules_to_save=["norm"])
    with pytest.raises(ConfigError) as of_second:
        model.add_adapter("other", variant.make_config(**wrong))
    assert str(of_second.value) == str(of_first.value)


@pytest.mark.parametrize("way", ["classifier", "head in full"])
@pytest.mark.parametrize(
    "config",
    [qpeft.QPAConfig, qpeft.QuantumPeftConfig, qpeft.SoRAConfig, qpeft.CUAConfig, qpeft.QAAConfig],
)
def test_second_adapter_of_all_maps_next_to_a_trained_head_is_loaded(tmp_path, config, way):
    """all-linear also named the first adapter's copy of the head, which a fresh base does not have."""

    def base():
        torch.manual_seed(0)
        if way == "head in full":
            return tiny_models.llama()
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
        return BertForSequenceClassification(
            BertConfig(vocab_size=50, num_attention_heads=2, num_labels=3, **sizes)
        )

    def settings():
        own = {"modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"}
        others = {"task_type": "SEQ_CLS"}
        return config(target_modules="all-linear", **(own if way == "head in full" else others))

    ids = torch.arange(8).reshape(2, 4)
    model = get_peft_model(base(), settings())
    model.add_adapter("b", settings())
    model.set_adapter("b")
    move(model)
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "b").eval()
    torch.testing.assert_close(loaded(ids).logits, expected)
    alone = get_peft_model(base(), settings()).base_model.targeted_module_names
    assert {*loaded.base_model.targeted_module_names} == {*alone}


# -- copies of single tensors, as weight averaging and best checkpoints make them


@pytest.mark.parametrize("is_evaluated", [True, False])
@pytest.mark.parametrize("name", ["lora", *GENERATED, "attached to lora"])
def test_tensor_of_a_layer_is_copied_with_its_values(llama, ids, adapters, name, is_evaluated):
    model = move(variant_of(name).adapt(llama))
    if is_evaluated:
        model(ids)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    tensors = {
        key: part["default"].weight for key, part in (("a", layer.lora_A), ("b", layer.lora_B))
    }

    copies = copy.deepcopy(tensors)
    expected = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    before = adapters.logits(model, ids)
    for copied in copies.values():
        copied.data.zero_()  # which is no tensor of the model

    assert all(tensor.any() for tensor in expected.values())
    assert torch.equal(adapters.logits(model, ids), before)
    again = copy.deepcopy(tensors)
    for key, tensor in expected.items():
        assert torch.equal(again[key], tensor)
