"""QPA on the experts of mixtures of experts, which PEFT adapts by `target_parameters`."""

import copy

import moe
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils import parameters_to_vector

import qpeft
from qpeft.errors import ConfigError
from qpeft.testing import adapter_contract
from qpeft_lab.diagnose.adapters import Adapter

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")


def _config(name="mixtral", **settings):
    targets = {"target_parameters": EXPERTS} if name == "gpt_oss" else {"target_modules": "all-linear"}
    return qpeft.QPAConfig(
        **{"r": 2, "chunk_size": 32, "init_mode": "raw", "task_type": "CAUSAL_LM", **targets, **settings}
    )


def _logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_contract(name, ids):
    def make():
        model = moe.make(name)
        model.set_experts_implementation("eager")  # the others cannot compute in float64
        return model

    batch = {"input_ids": ids, "labels": ids}  # whose routes jump, unlike a gradient
    adapter_contract(make, lambda: _config(name), batch, starts_at_base=False, exact_gradient=False)


def test_gradient_is_that_of_stock_lora_through_the_generator(ids, tmp_path):
    model = get_peft_model(moe.make("mixtral"), _config()).eval()
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


def test_attached_generator_counts_and_loads_experts(ids, tmp_path):
    lora = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    generator = qpeft.QPAGeneratorConfig(chunk_size=32)
    plan = qpeft.plan(moe.make("mixtral"), LoraConfig(**lora), generator)
    model = qpeft.attach(get_peft_model(moe.make("mixtral"), LoraConfig(**lora)), generator).eval()
    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    qpeft.save(model, tmp_path)
    assert torch.equal(_logits(qpeft.load(moe.make("mixtral"), tmp_path), ids), _logits(model, ids))


@pytest.mark.parametrize("option", [{"lora_dropout": 0.1}, {"use_dora": True}, {"target_modules": ["w1"]}])
def test_option_that_peft_lacks_for_experts_is_refused_by_plan_and_training(option):
    base = moe.make("mixtral")
    names = [name for name, _ in base.named_parameters()]
    for function in (qpeft.plan, get_peft_model):
        with pytest.raises(ConfigError):
            function(base, _config(**option))
    assert [name for name, _ in base.named_parameters()] == names


def test_what_does_not_apply_to_experts_is_refused_or_left_out(ids, tmp_path):
    qpeft.save(get_peft_model(moe.make("mixtral"), _config()), tmp_path / "a")
    pool = qpeft.AdapterPool(moe.make("mixtral"), tmp_path, capacity=1)
    with pytest.raises(ValueError, match="ParamWrapper"):
        pool.model(input_ids=ids, adapter_names=pool.place(["a", *["__base__"] * (len(ids) - 1)]))
    with pytest.raises(ConfigError, match="experts"):
        Adapter(tmp_path / "a").factors()
