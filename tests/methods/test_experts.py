"""Mixtures of experts: counts as in training, stock LoRA's modules; QPA on experts, which PEFT
adapts by parameters.
"""

import pytest
from families import EXPERTS, experts
from folders import bytes_of
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

import qpeft
from qpeft import methods
from qpeft.errors import ConfigError, InputError
from qpeft.testing import adapter_contract
from qpeft_lab.diagnose.adapters import Adapter

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")


def adapted(model):
    """Names in the base of the adapted modules, and of the parameters that PEFT adapts without a
    module.
    """
    layers = [
        (n, m) for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)
    ]
    names = [".".join([n, *filter(None, [getattr(m, "parameter_name", None)])]) for n, m in layers]
    return sorted(name.replace(".base_layer", "") for name in names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "qpa", "quantum_peft", "sora", "qaa", "bottleneck"])
@pytest.mark.parametrize("name", EXPERTS)
def test_plan_equals_training_and_stock_lora(name, method, tmp_path):
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}

    def make(method=method):
        size = (
            {}
            if method == "qaa"
            else {"bottleneck_size": 2}
            if method == "bottleneck"
            else {"r": 2}
        )
        return methods.get(method).config_class(**size, **options)

    base = experts(name)
    stock = get_peft_model(experts(name), make("lora"))
    try:
        plan = qpeft.plan(base, make())
    except InputError as error:
        assert method not in ("lora", "qpa")
        with pytest.raises(type(error)):
            get_peft_model(base, make())
        assert adapted(get_peft_model(base, make("lora")))  # the base was not changed
        return
    model = get_peft_model(base, make())
    model.save_pretrained(tmp_path, save_embedding_layers=False)

    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    assert plan.stored_bytes == bytes_of(tmp_path)
    assert sorted(plan.target_modules) == adapted(model) == adapted(stock)

    if method in ("qpa", "quantum_peft"):
        assert plan.deployed == stock.get_nb_trainable_parameters()[0]


def qpa(name="mixtral", **settings):
    targets: dict = {"target_modules": "all-linear"}
    if name == "gpt_oss":
        targets = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    given = {
        "r": 2,
        "chunk_size": 32,
        "init_mode": "raw",
        "task_type": "CAUSAL_LM",
        **targets,
        **settings,
    }
    return qpeft.QPAConfig(**given)


def test_experts_alone_are_adapted_where_only_they_are_named():
    """PEFT would add its default targets for this type of model."""
    named = ["experts.gate_up_proj", "experts.down_proj"]
    config = qpa(target_modules=None, target_parameters=named)
    model = get_peft_model(experts("mixtral"), config)
    stock = get_peft_model(experts("mixtral"), LoraConfig(r=2, target_parameters=named))

    assert adapted(model) == adapted(stock)
    assert (
        qpeft.plan(experts("mixtral"), config).trainable == (model.get_nb_trainable_parameters()[0])
    )


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_contract(name, ids):
    def make():
        model = experts(name)
        model.set_experts_implementation("eager")  # the others cannot compute in float64
        return model

    if name == "deepseek_v3":
        stock = get_peft_model(make(), LoraConfig(target_modules="all-linear"))
        try:
            stock(input_ids=ids)
        except AttributeError:
            pytest.skip("PEFT's limit: with transformers 5.5 it wraps the router of this model")
    batch = {"input_ids": ids, "labels": ids}  # whose routes jump, unlike a gradient
    adapter_contract(make, lambda: qpa(name), batch, starts_at_base=False, exact_gradient=False)


@pytest.mark.parametrize(
    "option", [{"lora_dropout": 0.1}, {"use_dora": True}, {"target_modules": ["w1"]}]
)
def test_option_that_peft_lacks_for_experts_is_refused_by_plan_and_training(option):
    base = experts("mixtral")
    names = [name for name, _ in base.named_parameters()]
    for function in (qpeft.plan, get_peft_model):
        with pytest.raises(ConfigError):
            function(base, qpa(**option))
    assert [name for name, _ in base.named_parameters()] == names


def test_what_does_not_apply_to_experts_is_refused_or_left_out(ids, tmp_path):
    qpeft.save(get_peft_model(experts("mixtral"), qpa()), tmp_path / "a")
    pool = qpeft.AdapterPool(experts("mixtral"), tmp_path, capacity=1)
    with pytest.raises(ValueError, match="ParamWrapper"):
        pool.model(input_ids=ids, adapter_names=pool.place(["a", *["__base__"] * (len(ids) - 1)]))
    with pytest.raises(ConfigError, match="experts"):
        Adapter(tmp_path / "a").factors()
