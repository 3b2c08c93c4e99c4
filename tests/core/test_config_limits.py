"""A hostile adapter_config.json is refused, or loaded, in bounded time and memory."""

import json

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import seeded_llama as llama

import qpeft
from qpeft.core import config_limits, generator
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.methods.qpa.generator import FoldedLinear

TARGETS = ["q_proj", "v_proj"]
ENDLESS = r"((\w|\.)+)+!"


@pytest.fixture
def hostile(tmp_path):
    """Save an adapter of `config` and change its adapter_config.json."""

    def make(config, **changes):
        qpeft.save(get_peft_model(llama(), config), tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return tmp_path / "adapter"

    return make


CONFIGS = {
    "stock": lambda: LoraConfig(r=2, target_modules=TARGETS),
    "generated": lambda: qpeft.QPAConfig(r=2, target_modules=TARGETS, chunk_size=16, hidden=(2,)),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 2}},
        {"alpha_pattern": {ENDLESS: 2}},
        {"layers_to_transform": [0], "layers_pattern": ENDLESS},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_pattern_that_takes_too_long_is_refused(hostile, monkeypatch, kind, changes):
    monkeypatch.setattr(config_limits, "SECONDS", 0.3)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: a pattern takes more than 0\.3 seconds"):
        qpeft.load(llama(), hostile(CONFIGS[kind](), **changes))


@pytest.mark.parametrize("pattern", [r"(.|.)*!", ".?" * 28 + "." * 28 + "!"], ids=["alternatives", "optional"])
def test_pattern_with_one_quantifier_can_take_too_long(monkeypatch, pattern):
    monkeypatch.setattr(config_limits, "SECONDS", 0.3)
    with pytest.raises(ConfigError, match="a pattern takes more than"):
        config_limits.check_patterns([pattern], ["model.layers.0.self_attn.q_proj.and.a.longer.name"])


def test_pattern_of_a_users_config_that_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(config_limits, "SECONDS", 0.3)
    with pytest.raises(ConfigError, match="use a simpler regular expression"):
        get_peft_model(llama(), qpeft.QPAConfig(target_modules=ENDLESS))


def test_ordinary_pattern_is_loaded(hostile):
    pattern = r".*\.layers\.\d+\.self_attn\.(q|v)_proj$"
    qpeft.load(llama(), hostile(LoraConfig(r=2, target_modules=pattern)))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "changes", [{"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}], ids=lambda changes: next(iter(changes))
)
def test_rank_larger_than_all_tensors_is_refused(hostile, kind, changes):
    with pytest.raises(CheckpointError, match=r"=1000000000 is larger than the tensors of the adapter"):
        qpeft.load(llama(), hostile(CONFIGS[kind](), **changes))


@pytest.mark.parametrize(
    "changes",
    [{"chunk_size": 10**9}, {"n_layers": 10**9}, {"hidden": [10**9]}, {"hidden": [1] * 10**5}],
    ids=["chunk_size", "n_layers", "width", "widths"],
)
def test_size_of_a_generator_is_limited(hostile, changes):
    with pytest.raises(CheckpointError, match="at most"):
        qpeft.load(llama(), hostile(CONFIGS["generated"](), **changes))


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": [512] * 8},
        {"hidden": [4], "chunk_size": 2**20},
        {"hidden": [512] * 8, "chunk_size": None, "budget": 10**8},
    ],
    ids=["hidden", "chunk_size", "budget"],
)
def test_generator_larger_than_the_weights_is_refused_before_it_is_drawn(hostile, monkeypatch, attached, changes):
    small = qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(2,))
    folder = hostile(CONFIGS["generated"](), **({} if attached else changes))
    if attached:
        folder = folder.parent / "attached"
        qpeft.save(qpeft.attach(get_peft_model(llama(), CONFIGS["stock"]()), small), folder)
        file = folder / "adapter_config.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "generator": content["generator"] | changes}))
    monkeypatch.setattr(SeededInit, "_unit", lambda *_: pytest.fail("drawn"))
    with pytest.raises(CheckpointError, match=r"its generator would have [\d,]+ parameters, the weights contain"):
        qpeft.load(llama(), folder)


@pytest.mark.parametrize("bits", [None, 1])
def test_circuits_larger_than_the_weights_are_refused_before_they_are_drawn(hostile, monkeypatch, bits):
    config = qpeft.QuantumPeftConfig(r=2, target_modules="all-linear", bits=bits)
    qpeft.load(llama(), hostile(config))
    folder = hostile(config, n_layers=10_000)
    monkeypatch.setattr(SeededInit, "_unit", lambda *_: pytest.fail("drawn"))
    with pytest.raises(CheckpointError, match=r"its generator would have [\d,]+ parameters, the weights contain"):
        qpeft.load(llama(), folder)


@pytest.mark.parametrize("load", [PeftModel.from_pretrained, qpeft.load], ids=["peft", "qpeft"])
def test_generator_much_larger_than_its_adapter_is_refused_before_it_is_drawn(hostile, monkeypatch, load):
    folder = hostile(CONFIGS["generated"](), hidden=[4096] * 20)
    monkeypatch.setattr(FoldedLinear, "__init__", lambda *_: pytest.fail("drawn"))
    with pytest.raises(InputError, match="the generator would have 318,935,088 parameters to generate 224; at most"):
        load(llama(), folder)


def test_generator_larger_than_its_adapter_is_limited(monkeypatch):
    monkeypatch.setattr(generator, "_MOST", 3000)
    for config in (
        qpeft.QPAConfig(r=2, target_modules=TARGETS, chunk_size=16, hidden=(64, 64)),
        qpeft.QuantumPeftConfig(r=2, target_modules=TARGETS, n_layers=200),
    ):
        model = llama()
        with pytest.raises(ConfigError, match=r"to generate \d+; at most 3,000 are allowed"):
            get_peft_model(model, config)
        assert not any("lora" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    "table", [None, [], [["x", [-1]]], [["x", [10**30]]], [["x", [10**9, 10**9]]], [[10**8, 16]]], ids=str
)
def test_damaged_table_of_generated_tensors_is_refused(hostile, table):
    with pytest.raises(CheckpointError, match="table of generated tensors is damaged"):
        qpeft.load(llama(), hostile(CONFIGS["generated"](), generated=table))


def test_table_of_generated_tensors_is_no_evidence_of_a_rank(hostile):
    forged = [["model.layers.0.self_attn.q_proj.lora_A.weight", [10**8, 16]]]
    with pytest.raises(CheckpointError, match="r=100000000 is larger than the tensors of the adapter"):
        qpeft.load(llama(), hostile(CONFIGS["generated"](), generated=forged, r=10**8))


OWN = {
    "generated": CONFIGS["generated"],
    "quantum": lambda: qpeft.QuantumPeftConfig(r=2, target_modules=TARGETS),
    "gated": lambda: qpeft.SoRAConfig(r=2, target_modules=TARGETS, shrink_budget=0),
    "bottleneck": lambda: qpeft.BottleneckConfig(bottleneck_size=2),
}


@pytest.mark.parametrize("kind", OWN)
def test_rank_larger_than_its_module_is_refused_also_by_peft(hostile, kind):
    changes = {"bottleneck_size": 2**16} if kind == "bottleneck" else {"rank_pattern": {"v_proj": 10**8}}
    with pytest.raises(ConfigError, match=r"(v_proj|mlp); use at most 1024"):
        PeftModel.from_pretrained(llama(), hostile(OWN[kind](), **changes))


def test_peft_reports_the_pattern_and_not_the_base_model(hostile, monkeypatch):
    monkeypatch.setattr(config_limits, "SECONDS", 0.3)
    with pytest.raises(ConfigError, match=r"^a pattern takes more than"):
        PeftModel.from_pretrained(llama(), hostile(CONFIGS["generated"](), target_modules=ENDLESS))


def test_number_of_qubits_is_not_looped_over():
    config = qpeft.QPAConfig(r=2, target_modules=TARGETS, budget=200, hidden=(2,), max_qubits=10**9)
    model = get_peft_model(llama(), config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) <= 200
