"""The generator of examples/own_generator.py: its contract, and its life over stock adapters."""

import copy
import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model

import qpeft
from qpeft.core.generator_registry import generator_config
from qpeft.core.seeded_init import SeededInit
from qpeft.diagnostics import of_folder
from qpeft.errors import CheckpointError, ConfigError
from qpeft.generator_config import GeneratorConfig
from qpeft.testing import generator_contract

LM = {"task_type": "CAUSAL_LM"}
HOSTS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **LM),
    "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[], **LM),
    "prefix": PrefixTuningConfig(num_virtual_tokens=2, **LM),
}


@pytest.fixture(scope="module")
def own(example):
    return example("own_generator")


def test_it_keeps_the_contract(own):
    initial = torch.linspace(-1, 1, 30)

    def make(seed, angle_scale=10.0):
        config = own.RingConfig(n_qubits=3, n_layers=2, angle_scale=angle_scale, seed=seed)
        return config.make(initial, SeededInit(seed))

    def dense_reference(generator):
        p, p0 = (
            own.gate_probabilities(generator.ansatz, generator.angles(at_start=at_start)).detach().numpy()
            for at_start in (False, True)
        )
        mixing = SeededInit(0).normal("mixing", (30, 8), std=30**-0.5).double().numpy()
        return torch.from_numpy(initial.double().numpy() + np.einsum("pd,d->p", mixing, 8 * (p - p0)))

    generator_contract(
        make,
        initial=initial,
        n_trained=2 * 2 * 3,
        dense_reference=dense_reference,
        make_other=lambda: make(0, angle_scale=1.0),
    )


@pytest.fixture
def trained(llama, ids, adapters, own):
    def make(host="lora", **settings):
        plain = copy.deepcopy(llama)
        model = get_peft_model(copy.deepcopy(plain), copy.deepcopy(HOSTS[host])).eval()
        stock = adapters.logits(model, ids)
        qpeft.attach(model, own.RingConfig(**{"n_qubits": 4, "n_layers": 2, **settings}))
        assert torch.equal(adapters.logits(model, ids), stock)
        return plain, adapters.train(model, ids)

    return make


@pytest.mark.parametrize("host", HOSTS)
def test_it_is_saved_under_its_name_and_exported(trained, ids, adapters, tmp_path, host):
    plain, model = trained(host)
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 4
    live = adapters.logits(model, ids)
    qpeft.save(model, tmp_path / "compact")
    assert json.loads((tmp_path / "compact/adapter_config.json").read_text())["generator_name"] == "ring"
    assert torch.equal(adapters.logits(qpeft.load(copy.deepcopy(plain), tmp_path / "compact"), ids), live)
    assert "import own_generator  # registers RingConfig\nimport qpeft" in (tmp_path / "compact/README.md").read_text()
    qpeft.export(model, tmp_path / "exported")
    stock = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, ids), live, atol=1e-6, rtol=0)


def test_a_folder_of_a_generator_that_is_not_registered(trained, tmp_path):
    plain, model = trained()
    qpeft.save(model, tmp_path / "compact")
    path = tmp_path / "compact/adapter_config.json"
    path.write_text(path.read_text().replace('"generator_name": "ring"', '"generator_name": "star"'))
    with pytest.raises(CheckpointError, match="the generator 'star', which is not known here: import the module"):
        qpeft.load(plain, tmp_path / "compact")


def test_other_settings_and_other_generators_are_not_mixed_up(trained, tmp_path):
    _, model = trained()
    qpeft.save(model, tmp_path / "compact")
    with pytest.raises(CheckpointError, match="other settings than this adapter has: n_layers"):
        trained(n_layers=3)[1].load_adapter(tmp_path / "compact", "default")
    over = qpeft.attach(
        get_peft_model(trained()[0], copy.deepcopy(HOSTS["lora"])),
        qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(6,), n_layers=2),
    )
    with pytest.raises(CheckpointError, match=r"other settings than this adapter has: .*generator"):
        over.load_adapter(tmp_path / "compact", "default")


def test_a_folder_from_before_generators_had_names_is_qpas(llama, ids, adapters, tmp_path):
    plain = copy.deepcopy(llama)
    model = get_peft_model(llama, copy.deepcopy(HOSTS["lora"]))
    qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(6,), n_layers=2))
    qpeft.save(adapters.train(model, ids), tmp_path / "compact")
    path = tmp_path / "compact/adapter_config.json"
    config = json.loads(path.read_text())
    assert config.pop("generator_name") == "qpa"
    path.write_text(json.dumps(config))
    again = qpeft.load(plain, tmp_path / "compact")
    assert torch.equal(adapters.logits(again, ids), adapters.logits(model, ids))


def test_diagnosis_reads_the_generated_factors(trained, tmp_path):
    _, model = trained()
    qpeft.save(model, tmp_path / "compact")
    qpeft.export(model, tmp_path / "exported")
    compact, exported = (of_folder(tmp_path / name) for name in ("compact", "exported"))
    assert (compact.method, compact.circuit) == ("ring", None)
    expected = exported.saved.factors()
    found = compact.saved.factors()
    assert found.keys() == expected.keys()
    for name, factors in found.items():
        torch.testing.assert_close(factors, expected[name])


def test_what_knows_qpa_alone_says_so(trained, own):
    plain, model = trained()
    with pytest.raises(ConfigError, match="plans know no RingConfig"):
        qpeft.plan(plain, HOSTS["lora"], own.RingConfig())
    with pytest.raises(ConfigError, match="no circuit of QPA"):
        qpeft.set_backend(model, "exact", shots=100)


def test_names_and_classes_that_cannot_be_registered(own):
    class NoDataclass(GeneratorConfig):
        pass

    with pytest.raises(ConfigError, match="takes a dataclass that is a GeneratorConfig"):
        qpeft.register_generator("mine", NoDataclass)
    for name in ("qpa", "ring"):
        with pytest.raises(ConfigError, match=f"there is a generator '{name}' already"):
            qpeft.register_generator(name, type("Other", (own.RingConfig,), {}))
    for name in ("", " ", "a:b", 5):
        with pytest.raises(ConfigError, match="a registered name must be a non-empty string"):
            qpeft.register_generator(name, own.RingConfig)
    qpeft.register_generator("ring", own.RingConfig)  # the same again


def test_a_reloaded_module_replaces_what_it_registered(own, example, monkeypatch):
    before = own.RingConfig
    monkeypatch.syspath_prepend(str(Path(own.__file__).parent))
    importlib.reload(own)
    assert own.RingConfig is not before
    assert generator_config("ring") is own.RingConfig
    assert {f.name for f in dataclasses.fields(own.RingConfig) if "help" not in f.metadata} == set()


def test_nobody_replaces_qpas_by_its_own_name():
    twin = dataclass(
        type("QPAGeneratorConfig", (GeneratorConfig,), {"__module__": qpeft.QPAGeneratorConfig.__module__})
    )
    with pytest.raises(ConfigError, match="there is a generator 'qpa' already"):
        qpeft.register_generator("qpa", twin)
