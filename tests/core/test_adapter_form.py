"""Which adapters plain PEFT can load."""

from dataclasses import dataclass

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraModel
from tiny_models import seeded_llama

import qpeft
from qpeft.core.adapter_form import has_stock_form, own_kind
from qpeft.errors import ConfigError
from qpeft.methods import MethodName
from qpeft.training.outputs import needs_qpeft

PLAIN = MethodName("TEST_PLAIN_TUNER")


@dataclass
class PlainConfig(LoraConfig):
    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PLAIN


class PlainTuner(LoraModel):
    """A tuner of a user that declares nothing to qpeft."""


qpeft.register_method(PLAIN, PlainConfig, PlainTuner)


def test_tuner_from_outside_peft_without_an_export_needs_qpeft(tmp_path):
    model = get_peft_model(seeded_llama(), PlainConfig(r=2, target_modules=["q_proj"]))
    assert own_kind(model) == "an adapter of PlainTuner"
    assert not has_stock_form(model)
    assert needs_qpeft(model)
    with pytest.raises(ConfigError, match="an adapter of PlainTuner cannot be exported as a stock PEFT adapter"):
        qpeft.export(model, tmp_path / "exported")


def test_plan_of_such_a_tuner_names_no_export():
    plan = qpeft.plan(seeded_llama(), PlainConfig(r=2, target_modules=["q_proj"]))
    assert plan.needs_qpeft
    assert plan.exported_bytes is None


def test_tuner_of_peft_loads_with_plain_peft():
    model = get_peft_model(seeded_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert own_kind(model) is None
    assert not needs_qpeft(model)
