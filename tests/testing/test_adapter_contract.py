"""`adapter_contract` detects every planted mistake."""

import copy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from qpeft.core.config import MethodName
from qpeft.core.folded import Folded
from qpeft.methods import Method
from qpeft.methods.qpa.config import QPAConfig, QPAModel
from qpeft.methods.qpa.generator import QPAGenerator
from qpeft.methods.registry import register_with_peft
from qpeft.testing import adapter_contract

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
SMALL = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
QPA = {"r": 2, "hidden": (6, 5), "chunk_size": 16, "n_layers": 3, **SMALL}


def check(llama, ids, make_config, **options):
    adapter_contract(
        lambda: copy.deepcopy(llama), make_config, {"input_ids": ids, "labels": ids}, **options
    )


def test_stock_lora_is_refused(llama, ids):
    with pytest.raises(AssertionError, match=r"qpeft\.export: ConfigError"):
        check(llama, ids, lambda: LoraConfig(r=2, **SMALL))


def forgetful(cls, *args, **kwargs):
    """Does not save one tensor."""
    state = super(QPAModel, cls)._get_adapter_state_dict(*args, **kwargs)
    state.pop(next(name for name in state if name.endswith("tau")))
    return state


def making(change):
    """A `_make_generator` that changes the generator."""

    def make(self, adapter_name, config):
        generator, slots = QPAModel._make_generator(self, adapter_name, config)
        change(generator)
        return generator, slots

    return {"_make_generator": make}


def injecting(change):
    """An `inject_adapter` that ends with a change."""

    def inject(self, *args, **kwargs):
        QPAModel.inject_adapter(self, *args, **kwargs)
        change(self)

    return {"inject_adapter": inject}


def never_another(self, adapter_name, inference_mode=False):
    if adapter_name == "default":
        QPAModel.set_adapter(self, adapter_name, inference_mode)


def not_unmerged(self):
    for layer in self.modules():
        if isinstance(layer, LoraLayer):
            layer.merged_adapters.clear()


class Halved(QPAGenerator):
    """With half the gradient."""

    def forward(self):
        half = super().forward() / 2
        return half + half.detach()


class Cached(QPAGenerator):
    def forward(self):
        if not hasattr(self, "kept"):
            self.kept = super().forward()
        return self.kept


MISTAKES = {  # what is defined otherwise, and the message
    "forgetful": ({"_get_adapter_state_dict": classmethod(forgetful)}, "from_pretrained"),
    "elsewhere": (
        making(lambda made: made.initial.add_(0.01)),
        "an untrained adapter changes the outputs",
    ),
    "frozen": (
        injecting(lambda model: model.generators.requires_grad_(False)),
        "there are no trainable parameters",
    ),
    "base too": (
        injecting(lambda model: model.model.lm_head.weight.requires_grad_(True)),
        r"base_model\.model\.lm_head\.weight is trainable",
    ),
    "one for all": ({"set_adapter": never_another}, r"set_adapter\(\) has no effect"),
    "itself": (
        {"__deepcopy__": lambda self, memo: self},
        "training it changes the model it was copied from",
    ),
    "halved": (making(lambda made: setattr(made, "__class__", Halved)), "the gradient is off by"),
    "idle": (
        making(lambda made: setattr(made, "idle", Folded(torch.zeros(1000), 1.0))),
        "idle.tau is trainable but has no gradient",
    ),
    "cached": (making(lambda made: setattr(made, "__class__", Cached)), "five steps of AdamW"),
    "unmerged": ({"unmerge_adapter": not_unmerged}, r"unmerge_adapter\(\)"),
    "not stock": ({}, "qpeft.export"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_contract_detects_mistakes(llama, ids, mistake):
    changes, message = MISTAKES[mistake]
    name = MethodName(f"TEST_{mistake.upper().replace(' ', '_')}")

    @dataclass
    class Planted(QPAConfig):
        def __post_init__(self):
            super().__post_init__()
            self.peft_type = name

        def to_stock(self):
            stock = super().to_stock()
            stock.lora_alpha *= 2 if mistake == "not stock" else 1
            return stock

    tuner = type("Mistaken", (QPAModel,), changes)
    register_with_peft(Method(key=name.value, title="planted", config=Planted, tuner=tuner))

    with pytest.raises(AssertionError, match=message):
        check(llama, ids, lambda: Planted(**QPA))


def test_varying_base_is_detected(llama, ids):
    def another():
        torch.nn.init.normal_(llama.lm_head.weight)
        return copy.deepcopy(llama)

    with pytest.raises(AssertionError, match="the same weights at every call"):
        adapter_contract(another, lambda: QPAConfig(**QPA), {"input_ids": ids, "labels": ids})
