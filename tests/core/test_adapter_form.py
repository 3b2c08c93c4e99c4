"""Which adapters plain PEFT can load."""

from dataclasses import dataclass

import pytest
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from tiny_models import seeded_llama

import qpeft
from qpeft.core.adapter_form import AdapterForm, has_stock_form, own_kind
from qpeft.core.model_card import load_lines
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
    """A tuner that declares nothing to qpeft."""


class FormTuner(AdapterForm, LoraModel):
    """A tuner that does not define `stock_adapter`."""


qpeft.register_method(PLAIN, PlainConfig, PlainTuner)


@pytest.mark.parametrize("tuner", [PlainTuner, FormTuner])
def test_tuner_from_outside_peft_without_an_export_needs_qpeft(monkeypatch, tmp_path, tuner):
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PLAIN, tuner)
    model = get_peft_model(seeded_llama(), PlainConfig(r=2, target_modules=["q_proj"]))
    assert own_kind(model) == f"an adapter of {tuner.__name__}"
    assert not has_stock_form(model)
    assert needs_qpeft(model)
    with pytest.raises(ConfigError, match=r"an adapter of .*Tuner cannot be exported as a stock PEFT adapter"):
        qpeft.export(model, tmp_path / "exported")


@pytest.mark.parametrize("tuner", [PlainTuner, FormTuner])
def test_plan_of_a_tuner_without_an_export(monkeypatch, tuner):
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PLAIN, tuner)
    plan = qpeft.plan(seeded_llama(), PlainConfig(r=2, target_modules=["q_proj"]))
    assert plan.needs_qpeft
    assert plan.exported_bytes is None


def test_loading_code_imports_the_module_of_a_custom_method():
    lines = load_lines("base", "adapter", needs_qpeft=True, registered=PlainConfig)
    assert lines.startswith(f"import {__name__}  # registers PlainConfig\nimport qpeft\n")


def test_tuner_of_peft_loads_with_plain_peft():
    model = get_peft_model(seeded_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert own_kind(model) is None
    assert not needs_qpeft(model)
