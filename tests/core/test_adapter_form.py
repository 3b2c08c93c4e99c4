"""Which adapters plain PEFT can load."""

from dataclasses import dataclass

import pytest
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from tiny_models import seeded_llama
from transformers import GPT2LMHeadModel

import qpeft
from qpeft.core.adapter_form import AdapterForm, own_kind
from qpeft.core.model_card import load_lines
from qpeft.errors import ConfigError
from qpeft.methods import Method, MethodName
from qpeft.methods.registry import register_with_peft
from qpeft_lab.training.outputs import needs_qpeft

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


register_with_peft(Method(key="plain", title="plain", config=PlainConfig, tuner=PlainTuner))


@pytest.mark.parametrize("tuner", [PlainTuner, FormTuner])
def test_tuner_from_outside_peft_without_an_export_needs_qpeft(monkeypatch, tmp_path, tuner):
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PLAIN, tuner)
    model = get_peft_model(seeded_llama(), PlainConfig(r=2, target_modules=["q_proj"]))
    assert own_kind(model) == f"an adapter of {tuner.__name__}"
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


USES_OF_AN_ADAPTER = {
    "export": lambda model, folder: qpeft.export(model, folder),
    "save": lambda model, folder: qpeft.save(model, folder),
    "attach": lambda model, _: qpeft.attach(model, qpeft.QPAGeneratorConfig()),
    "set_backend": lambda model, _: qpeft.set_backend(model, shots=100),
    "fit_frames": lambda model, _: qpeft.fit_frames(model, []),
}
USES_OF_A_MODEL = {
    "load": lambda model, folder: qpeft.load(model, folder),
    "pool": lambda model, folder: qpeft.AdapterPool(model, folder),
    "param_groups": lambda model, _: qpeft.param_groups(model, 1e-3),
}


@pytest.mark.parametrize("use", USES_OF_AN_ADAPTER.values(), ids=USES_OF_AN_ADAPTER)
def test_model_without_an_adapter_is_refused(use, gpt2, tmp_path):
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no adapter; give the PeftModel"):
        use(gpt2, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("use", [*USES_OF_AN_ADAPTER.values(), *USES_OF_A_MODEL.values()])
@pytest.mark.parametrize("model", [None, "gpt2", GPT2LMHeadModel])
def test_what_is_no_model_is_refused(use, model, tmp_path):
    with pytest.raises(ConfigError, match=f"a torch model is needed, got {type(model).__name__}"):
        use(model, tmp_path / "new")


def test_plan_without_a_config_is_refused(gpt2):
    with pytest.raises(ConfigError, match="plan takes the config of an adapter, such as QPAConfig"):
        qpeft.plan(gpt2, "qpa")
