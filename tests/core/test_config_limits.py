"""A hostile adapter_config.json is refused, or loaded, in bounded time and memory."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from tiny_models import llama

import qpeft
from qpeft.core import config_limits
from qpeft.errors import CheckpointError, ConfigError

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


def test_number_of_qubits_is_not_looped_over():
    config = qpeft.QPAConfig(r=2, target_modules=TARGETS, budget=200, hidden=(2,), max_qubits=10**9)
    model = get_peft_model(llama(), config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) <= 200
