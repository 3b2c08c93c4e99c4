"""Mixtures of experts: counts as in training, stock LoRA's modules; QPA on experts, which PEFT adapts by parameters."""

import copy

import moe
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector

import qpeft
from qpeft.errors import ConfigError, InputError
from qpeft.testing import adapter_contract
from qpeft_lab.diagnose.adapters import Adapter

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
METHODS = {
    "lora": lambda **options: LoraConfig(r=2, **options),
    "qpa": lambda **options: qpeft.QPAConfig(r=2, chunk_size=32, **options),
    "quantum_peft": lambda **options: qpeft.QuantumPeftConfig(r=2, n_layers=1, **options),
    "sora": lambda **options: qpeft.SoRAConfig(r=2, **options),
    "qaa": lambda **options: qpeft.QAAConfig(**options),
    "bottleneck": lambda **options: qpeft.BottleneckConfig(bottleneck_size=2, **options),
}


def adapted(model):
    """Names in the base of the adapted modules, and of the parameters that PEFT adapts without a module."""
    layers = [(n, m) for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)]
    names = [".".join([n, *filter(None, [getattr(m, "parameter_name", None)])]) for n, m in layers]
    return sorted(name.replace(".base_layer", "") for name in names)


def built(base, config, folder):
    """What a plan counts, after injection and saving; the stored tensors without hashes."""
    model = get_peft_model(base, config)
    model.save_pretrained(folder, save_embedding_layers=False)
    stored = load_file(folder / "adapter_model.safetensors")
    seal = 8 * any(key.endswith(".values") for key in stored)  # of Quantum-PEFT's stream
    n_bytes = sum(tensor.nbytes for key, tensor in stored.items() if not key.endswith("fingerprint")) - seal
    return adapted(model), model.get_nb_trainable_parameters()[0], n_bytes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", moe.MOE)
def test_plan_equals_training_and_stock_lora(name, method, tmp_path):
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    base, config = moe.make(name), METHODS[method](**options)
    stock = get_peft_model(moe.make(name), METHODS["lora"](**options))
    try:
        plan = qpeft.plan(base, config)
    except InputError as error:
        assert method not in ("lora", "qpa")
        with pytest.raises(type(error)):
            get_peft_model(base, METHODS[method](**options))
        assert adapted(get_peft_model(base, METHODS["lora"](**options)))  # the base was not changed
        return
    found = built(base, METHODS[method](**options), tmp_path)
    assert (sorted(plan.target_modules), plan.trainable, plan.stored_bytes) == found
    assert found[0] == adapted(stock)
    if method in ("qpa", "quantum_peft"):
        assert plan.deployed == stock.get_nb_trainable_parameters()[0]


def qpa(name="mixtral", **settings):
    targets = {"target_parameters": EXPERTS} if name == "gpt_oss" else {"target_modules": "all-linear"}
    given = {"r": 2, "chunk_size": 32, "init_mode": "raw", "task_type": "CAUSAL_LM", **targets, **settings}
    return qpeft.QPAConfig(**given)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_contract(name, ids):
    def make():
        model = moe.make(name)
        model.set_experts_implementation("eager")  # the others cannot compute in float64
        return model

    batch = {"input_ids": ids, "labels": ids}  # whose routes jump, unlike a gradient
    adapter_contract(make, lambda: qpa(name), batch, starts_at_base=False, exact_gradient=False)


def test_gradient_is_that_of_stock_lora_through_the_generator(ids, tmp_path):
    model = get_peft_model(moe.make("mixtral"), qpa()).eval()
    model(input_ids=ids, labels=ids).loss.backward()
    qpeft.export(model, tmp_path / "stock")
    stock = PeftModel.from_pretrained(moe.make("mixtral"), tmp_path / "stock", is_trainable=True).eval()
    stock(input_ids=ids, labels=ids).loss.backward()
    by_name = {name.replace(".default", ""): p.grad for name, p in stock.named_parameters() if p.requires_grad}
    binding = model.base_model.generators.bindings["default"]
    of_flat = torch.cat([by_name[f"base_model.model.{slot.label}"].flatten() for slot in binding.slots])
    generator = copy.deepcopy(binding.generator)
    generator.zero_grad()
    generator().backward(of_flat)
    expected = parameters_to_vector([p.grad for p in generator.parameters()])
    found = parameters_to_vector([p.grad for p in binding.generator.parameters()])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_attached_generator_counts_and_loads_experts(ids, adapters, tmp_path):
    lora = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    generator = qpeft.QPAGeneratorConfig(chunk_size=32)
    plan = qpeft.plan(moe.make("mixtral"), LoraConfig(**lora), generator)
    model = qpeft.attach(get_peft_model(moe.make("mixtral"), LoraConfig(**lora)), generator).eval()
    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    qpeft.save(model, tmp_path)
    loaded = qpeft.load(moe.make("mixtral"), tmp_path)
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))


@pytest.mark.parametrize("option", [{"lora_dropout": 0.1}, {"use_dora": True}, {"target_modules": ["w1"]}])
def test_option_that_peft_lacks_for_experts_is_refused_by_plan_and_training(option):
    base = moe.make("mixtral")
    names = [name for name, _ in base.named_parameters()]
    for function in (qpeft.plan, get_peft_model):
        with pytest.raises(ConfigError):
            function(base, qpa(**option))
    assert [name for name, _ in base.named_parameters()] == names


def test_what_does_not_apply_to_experts_is_refused_or_left_out(ids, tmp_path):
    qpeft.save(get_peft_model(moe.make("mixtral"), qpa()), tmp_path / "a")
    pool = qpeft.AdapterPool(moe.make("mixtral"), tmp_path, capacity=1)
    with pytest.raises(ValueError, match="ParamWrapper"):
        pool.model(input_ids=ids, adapter_names=pool.place(["a", *["__base__"] * (len(ids) - 1)]))
    with pytest.raises(ConfigError, match="experts"):
        Adapter(tmp_path / "a").factors()


def test_bottleneck_around_experts_has_the_width_of_the_config():
    """Their router's output has another width."""
    model = get_peft_model(moe.make("qwen2_moe"), METHODS["bottleneck"](task_type="CAUSAL_LM"))
    assert model.base_model.model.model.layers[0].mlp.width == 16
