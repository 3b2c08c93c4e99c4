"""`qpeft.plan` counts what training adapts of a mixture of experts, as stock LoRA. `test_life.py` has other models."""

import pytest
from moe import MOE, make
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

import qpeft
from qpeft.errors import InputError

METHODS = {
    "lora": lambda **options: LoraConfig(r=2, **options),
    "qpa": lambda **options: qpeft.QPAConfig(r=2, chunk_size=32, **options),
    "quantum_peft": lambda **options: qpeft.QuantumPeftConfig(r=2, n_layers=1, **options),
    "sora": lambda **options: qpeft.SoRAConfig(r=2, **options),
    "qaa": lambda **options: qpeft.QAAConfig(**options),
    "bottleneck": lambda **options: qpeft.BottleneckConfig(bottleneck_size=2, **options),
}


def _adapted(model):
    """Names in the base of the adapted modules, and of the parameters that PEFT adapts without a module."""
    layers = [(n, m) for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)]
    names = [".".join([n, *filter(None, [getattr(m, "parameter_name", None)])]) for n, m in layers]
    return sorted(name.replace(".base_layer", "") for name in names)


def _trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _saved_bytes(model, folder):
    """Of the tensors in the adapter's file, without the hashes of generators and features."""
    model.save_pretrained(folder, save_embedding_layers=False)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys() if not key.endswith("fingerprint")]  # noqa: SIM118
        seal = 8 * any(key.endswith(".values") for key in file.keys())  # noqa: SIM118 of Quantum-PEFT's stream
    return sum(tensor.nbytes for tensor in tensors) - seal


def _built(base, config, folder):
    model = get_peft_model(base, config)
    return _adapted(model), _trainable(model), _saved_bytes(model, folder)


def _planned(base, config):
    plan = qpeft.plan(base, config)
    return sorted(plan.target_modules), plan.trainable, plan.stored_bytes


def _outcome(function, *arguments):
    try:
        return function(*arguments)
    except InputError as error:
        return type(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MOE)
def test_plan_equals_training_and_stock_lora(name, method, tmp_path):
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    base = make(name)
    planned = _outcome(_planned, base, METHODS[method](**options))
    built = _outcome(_built, base, METHODS[method](**options), tmp_path)
    assert planned == built
    assert isinstance(built, tuple) or method not in ("lora", "qpa")
    if isinstance(built, tuple):
        stock = get_peft_model(make(name), LoraConfig(r=2, **options))
        assert built[0] == _adapted(stock)
        if method in ("qpa", "quantum_peft"):
            assert qpeft.plan(make(name), METHODS[method](**options)).deployed == _trainable(stock)
    else:
        assert _adapted(get_peft_model(base, METHODS["lora"](**options)))  # the base was not changed
