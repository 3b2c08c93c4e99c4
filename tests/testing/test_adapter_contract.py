"""`adapter_contract` detects every planted mistake."""

import copy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

import qpeft
from qpeft.core.config import MethodName
from qpeft.core.scaled_parameter import Folded
from qpeft.methods.qpa.config import QPAConfig
from qpeft.methods.qpa.generator import QPAGenerator
from qpeft.methods.qpa.model import QPAModel
from qpeft.testing import adapter_contract

pytestmark = [
    pytest.mark.filterwarnings("ignore:QPA trains"),  # the models are tiny
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
]
SMALL = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
QPA = {"r": 2, "hidden": (6, 5), "chunk_size": 16, "n_layers": 3, **SMALL}


def check(llama, ids, make_config, **options):
    adapter_contract(lambda: copy.deepcopy(llama), make_config, {"input_ids": ids, "labels": ids}, **options)


def test_stock_lora_is_refused(llama, ids):
    with pytest.raises(AssertionError, match=r"qpeft\.export fails: ConfigError"):
        check(llama, ids, lambda: LoraConfig(r=2, **SMALL))


class Forgetful(QPAModel):
    """Does not save one tensor."""

    @classmethod
    def _get_adapter_state_dict(cls, *args, **kwargs):
        state = super()._get_adapter_state_dict(*args, **kwargs)
        state.pop(next(name for name in state if name.endswith("tau")))
        return state


class Credulous(QPAModel):
    """Loads files without checks."""

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        prefix = f"base_model.{cls.container}."
        return {k.replace(prefix, f"{prefix}{adapter_name}."): v for k, v in state_dict.items()}


class Elsewhere(QPAModel):
    """Changes the outputs before training."""

    def _build(self, adapter_name, config, start):
        generator, slots = super()._build(adapter_name, config, start)
        generator.initial += 0.01
        return generator, slots


class Frozen(QPAModel):
    def _train_active_only(self, inference_mode=None):
        super()._train_active_only(True)


class BaseToo(QPAModel):
    """Trains a weight of the base as well."""

    def inject_adapter(self, model, *args, **kwargs):
        super().inject_adapter(model, *args, **kwargs)
        model.lm_head.weight.requires_grad_(True)


class OneForAll(QPAModel):
    """Never changes the active adapter."""

    def set_adapter(self, adapter_name, inference_mode=False):
        if adapter_name == "default":
            super().set_adapter(adapter_name, inference_mode)


class Itself(QPAModel):
    """Returns itself as its copy."""

    def __deepcopy__(self, memo):
        return self


class Sums(QPAModel):
    """Scales the adapter by the rows of a batch."""

    def forward(self, *args, **kwargs):
        with torch.no_grad():
            self.generators["default"].initial.mul_(1 + 0.1 * (len(kwargs["input_ids"]) == 1))
        self.invalidate()
        return super().forward(*args, **kwargs)


class Unmerged(QPAModel):
    def unmerge_adapter(self):
        for layer in self.modules():
            if isinstance(layer, LoraLayer):
                layer.merged_adapters.clear()


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class HalvedGenerator(QPAGenerator):
    def forward(self):
        return Half.apply(super().forward())


class Halved(QPAModel):
    """Backpropagates half of the gradient."""

    def _build(self, adapter_name, config, start):
        generator, slots = super()._build(adapter_name, config, start)
        generator.__class__ = HalvedGenerator
        return generator, slots


class Idle(QPAModel):
    """Has unused parameters."""

    def _build(self, adapter_name, config, start):
        generator, slots = super()._build(adapter_name, config, start)
        generator.idle = Folded(torch.zeros(1000), 1.0)
        return generator, slots


class CachedGenerator(QPAGenerator):
    def forward(self):
        if not hasattr(self, "kept"):
            self.kept = super().forward()
        return self.kept


class Cached(QPAModel):
    """Caches its output and graph between steps."""

    def _build(self, adapter_name, config, start):
        generator, slots = super()._build(adapter_name, config, start)
        generator.__class__ = CachedGenerator
        return generator, slots


class NotStock(QPAModel):
    pass


MISTAKES = {
    Forgetful: "from_pretrained fails on a folder",
    Credulous: "a folder without .* is loaded",
    Elsewhere: "an untrained adapter changes the outputs",
    Frozen: "there are no trainable parameters",
    BaseToo: r"base_model\.model\.lm_head\.weight is trainable",
    OneForAll: r"set_adapter\(\) has no effect",
    Itself: "training a deep copy changes the model it was copied from",
    Sums: "by rows is off by",
    Halved: "the gradient is off by .* from finite differences",
    Idle: "idle.tau is trainable but has no gradient",
    Cached: "five steps of AdamW (fail|with .* must reduce the loss)",
    Unmerged: r"unmerge_adapter\(\) does not undo",
    NotStock: r"qpeft\.export fails",
}


def planted(tuner):
    """A method that is QPA but for its tuner; registered once."""
    name = MethodName(f"TEST_{tuner.__name__.upper()}")

    @dataclass
    class Planted(QPAConfig):
        def __post_init__(self):
            super().__post_init__()
            self.peft_type = name

        def to_stock(self):
            stock = super().to_stock()
            stock.lora_alpha *= 2 if tuner is NotStock else 1
            return stock

    qpeft.register_method(name, Planted, tuner)
    return Planted


@pytest.mark.parametrize("tuner", MISTAKES, ids=lambda tuner: tuner.__name__)
def test_contract_detects_mistakes(llama, ids, tuner):
    config = planted(tuner)
    with pytest.raises(AssertionError, match=MISTAKES[tuner]):
        check(llama, ids, lambda: config(**QPA))


def test_merging_against_own_kind_is_detected(llama, ids):
    config = planted(type("Linear", (QPAModel,), {"own_kind": "a linear adapter"}))
    with pytest.raises(AssertionError, match="a linear adapter can be merged"):
        check(llama, ids, lambda: config(**QPA))


def test_varying_base_is_detected(llama, ids):
    def another():
        torch.nn.init.normal_(llama.lm_head.weight)
        return copy.deepcopy(llama)

    with pytest.raises(AssertionError, match="the same weights at every call"):
        adapter_contract(another, lambda: QPAConfig(**QPA), {"input_ids": ids, "labels": ids})
