"""Which adapters plain PEFT can load; what is no adapter; the card of an adapter folder."""

from dataclasses import dataclass

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from transformers import GPT2LMHeadModel

import qpeft
from qpeft.core.adapter_form import AdapterForm, has_stock_form
from qpeft.core.model_card import metadata
from qpeft.errors import ConfigError
from qpeft.methods import Method, MethodName
from qpeft.methods.registry import register_with_peft

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
def test_tuner_from_outside_peft_without_an_export_needs_qpeft(monkeypatch, llama, tmp_path, tuner):
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PLAIN, tuner)
    config = PlainConfig(r=2, target_modules=["q_proj"])
    plan, model = qpeft.plan(llama, config), get_peft_model(llama, config)
    assert (plan.needs_qpeft, plan.exported_bytes, has_stock_form(model)) == (True, None, False)
    with pytest.raises(ConfigError, match=f"no stock PEFT adapter .* {tuner.__name__}"):
        qpeft.export(model, tmp_path / "exported")


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


@pytest.mark.parametrize("use", USES_OF_AN_ADAPTER | USES_OF_A_MODEL)
def test_what_is_no_model_or_has_no_adapter_is_refused(use, gpt2, tmp_path):
    given = {None: "NoneType", "gpt2": "got str", GPT2LMHeadModel: "got type"}
    given |= {gpt2: "GPT2LMHeadModel has no adapter"} if use in USES_OF_AN_ADAPTER else {}
    for model, named in given.items():
        with pytest.raises(ConfigError, match=named):
            (USES_OF_AN_ADAPTER | USES_OF_A_MODEL)[use](model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="plan takes the config of an adapter"):
        qpeft.plan(gpt2, "qpa")


# -- cards


def test_only_a_name_on_the_hub_is_in_the_front_matter():
    for base in ("x\nlicense: mit", "x\n---\n# Trusted", "a: b", "- x", "x" * 5000, "a\0b", "../x", ""):
        assert yaml.safe_load(metadata(base, "lora")) == {"library_name": "peft", "tags": ["lora", "qpeft"]}
    for base in ("org/some-base.v1", "null", "2024-01-01"):
        assert yaml.safe_load(metadata(base, "lora"))["base_model"] == base


@pytest.mark.parametrize("put", [qpeft.save, qpeft.export])
@pytest.mark.parametrize("change", [b"%s\nmy notes\n", b"# caf\xe9\n", b"---\nfoo: [1\n---\n# mine\n", None])
def test_card_that_the_user_wrote_or_changed_is_kept(put, change, llama, adapters, tmp_path):
    model, path = adapters.qpa(llama, target_modules=["q_proj"]), tmp_path / "adapter" / "README.md"
    put(model, path.parent)
    made = path.read_bytes()
    if change is not None:
        path.write_bytes(change.replace(b"%s", made))
    kept = path.read_bytes()
    put(model, path.parent)
    assert path.read_bytes() == kept
    assert (kept == made) == (change is None)


def test_card_names_the_base_only_if_it_has_a_name(llama, adapters, tmp_path):
    model = adapters.qpa(llama, target_modules=["q_proj"])
    for name in ("", "org/some-base"):
        llama.name_or_path = llama.config.name_or_path = model.peft_config["default"].base_model_name_or_path = name
        for put, kind in ((qpeft.save, "qpa"), (qpeft.export, "lora")):
            put(model, tmp_path / name / kind)
            front = yaml.safe_load((tmp_path / name / kind / "README.md").read_text(encoding="utf-8").split("---\n")[1])
            assert (front.get("base_model"), front["tags"]) == (name or None, [kind, "qpeft"])
