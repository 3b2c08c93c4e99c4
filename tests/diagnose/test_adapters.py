"""Measurements of saved adapters equal those of the loaded models; the base's weights are not read."""

import numpy as np
import pytest
import tiny_models
import torch
from folders import edit_config
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from variants import move

import qpeft
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft_lab.diagnose import angle_movement, diagnose, effective_rank
from qpeft_lab.diagnose.adapters import Adapter

LM = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CIRCUIT = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3}
SMALL = {**LM, **CIRCUIT}
PAULI = {"r": 2, "n_layers": 1, **LM}
FRAMED = {
    "r": 2,
    "target_modules": ["q_proj"],
    "frame_rank": 4,
    "task_type": "CAUSAL_LM",
}
OF_CIRCUITS = ("random", "redundant", "gradients", "expressive")
BASES = {"llama": tiny_models.llama, "gpt2": tiny_models.gpt2}


@pytest.fixture
def base(tmp_path):
    """A base whose folder has its config, and no weights."""

    def make(name="llama"):
        torch.manual_seed(0)
        config = BASES[name]().config
        config.save_pretrained(tmp_path / name)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.name_or_path = model.config._name_or_path = str(tmp_path / name)
        return model

    return make


def moved(model, folder, ids=None):
    """`model` with changed parameters, saved."""
    if ids is not None:
        qpeft.fit_frames(model, [{"input_ids": ids}], save_to=folder.parent / "frames")
    qpeft.save(move(model), folder)
    return model


def attached(base):
    return qpeft.attach(get_peft_model(base, LoraConfig(**LM)), qpeft.QPAGeneratorConfig(**CIRCUIT))


@pytest.mark.parametrize(
    "config",
    [
        qpeft.QPAConfig(**SMALL),
        qpeft.QPAConfig(**SMALL, init_mode="raw", seed=3),
        qpeft.QPAConfig(**SMALL, use_dora=True),
        qpeft.QuantumPeftConfig(**PAULI),
        qpeft.QuantumPeftConfig(**FRAMED, frame="gradient"),  # needs the shapes of the base
        LoraConfig(r=3, target_modules=["q_proj"], use_dora=True),
    ],
)
def test_factors_of_a_folder_equal_those_of_the_model(base, ids, tmp_path, config):
    model = moved(
        get_peft_model(base(), config),
        tmp_path / "adapter",
        ids if getattr(config, "frame", None) else None,
    )
    with torch.no_grad():
        model(input_ids=ids)
    layers = {
        name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)
    }
    factors = Adapter(tmp_path / "adapter").factors()

    assert factors.keys() == layers.keys()

    for name, (b, a) in factors.items():
        layer = layers[name]
        assert_close(b @ a, layer.lora_B["default"].weight @ layer.lora_A["default"].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda base: get_peft_model(base, qpeft.QPAConfig(**SMALL, n_generators=2)),
        lambda base: get_peft_model(
            base, qpeft.QPAConfig(**SMALL, n_generators=2, feature_source="qnn_frozen")
        ),
        attached,
    ],
)
def test_circuit_of_a_folder_equals_that_of_the_model(base, tmp_path, make):
    model = moved(make(base()), tmp_path / "adapter")
    (feature,) = (m for m in model.modules() if type(m).__name__ == "CircuitFeature")
    circuit = Adapter(tmp_path / "adapter").circuit()
    assert_close(circuit.angles, feature.angles()[0].double())
    assert_close(circuit.start, feature.angles(initial=True)[0].double())
    assert circuit.n_circuits == len(feature.angles())


def test_questions_without_an_answer_have_a_reason(base, tmp_path, monkeypatch):
    def left_out(folder):
        found = diagnose(tmp_path / folder, samples=10)["findings"]
        return {key: [*one["measurements"]] for key, one in found.items() if one["left_out"]}

    host = get_peft_model(
        base("gpt2"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    moved(qpeft.attach(host, qpeft.QPAGeneratorConfig(**CIRCUIT)), tmp_path / "prefix")

    assert left_out("prefix") == {"rank": []}

    n_qubits = Adapter(tmp_path / "prefix").circuit().ansatz.n_qubits
    for widest, expected in ((n_qubits, ["rank"]), (n_qubits - 1, [*OF_CIRCUITS, "rank"])):
        monkeypatch.setattr("qpeft_lab.diagnose.answers._WIDEST", widest)
        assert [*left_out("prefix")] == expected
    model = moved(
        get_peft_model(base(), qpeft.SoRAConfig(r=2, target_modules=["q_proj"])), tmp_path / "sora"
    )
    qpeft.export(model, tmp_path / "exported")

    assert [*left_out("exported")] == [*OF_CIRCUITS, "moved"]


@pytest.mark.parametrize(
    "make, scale, host",
    [
        (lambda base: get_peft_model(base, qpeft.QPAConfig(**SMALL)), 10, "llama"),
        (lambda base: get_peft_model(base, qpeft.QPAConfig(**SMALL, angle_scale=3.0)), 3, "llama"),
        (lambda base: get_peft_model(base, qpeft.QuantumPeftConfig(**PAULI)), 50, "llama"),
        (lambda base: get_peft_model(base, qpeft.QAAConfig(task_type="CAUSAL_LM")), 10, "gpt2"),
        (attached, 10, "llama"),
    ],
)
def test_movement_is_that_of_tau_times_its_scale(base, tmp_path, make, scale, host):
    model = make(base(host))
    qpeft.save(model, tmp_path / "new")
    assert angle_movement(tmp_path / "new")["maximum"] == 0

    planted = [
        parameter for name, parameter in model.named_parameters() if name.endswith("angles.tau")
    ]
    for parameter in planted:
        parameter.data.copy_(torch.linspace(-0.02, 0.02, parameter.numel()).view_as(parameter))
    expected = scale * torch.cat([parameter.detach().flatten().abs() for parameter in planted])
    qpeft.save(model, tmp_path / "adapter")
    movement = angle_movement(tmp_path / "adapter")

    assert movement["angles"] == len(expected)
    assert movement["maximum"] == pytest.approx(0.02 * scale, rel=1e-4)
    assert movement["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert movement["still"] == pytest.approx((expected < 0.01).double().mean().item())


SIDES = st.integers(1, 9)


@given(st.integers(0, 2**16), SIDES, SIDES, SIDES, st.floats(1e-3, 1e3))
def test_factors_have_the_ranks_of_their_product(seed, rows, r, columns, scale):
    draw = np.random.default_rng(seed)
    b = scale * draw.standard_normal((rows, r))
    a = draw.standard_normal((r, columns))
    ranks = effective_rank({"w": (torch.from_numpy(b), torch.from_numpy(a))})
    s = np.linalg.svd(b @ a, compute_uv=False)[: min(rows, r, columns)]
    share = s / s.sum()

    assert ranks["possible"] == min(rows, r, columns)
    assert ranks["entropy_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert ranks["numerical_rank"] == (s > 1e-6 * s[0]).sum()


def test_zero_matrices_are_not_averaged():
    zero = torch.zeros(4, 2), torch.ones(2, 3)
    assert effective_rank({"w": zero})["entropy_rank"] == 0
    ranks = effective_rank({"w": zero, "v": torch.eye(3)})
    assert (ranks["entropy_rank"], ranks["possible"], ranks["matrices"]) == pytest.approx((3, 3, 1))


@pytest.mark.parametrize(
    "config, changed, call, error",
    [
        (qpeft.QPAConfig(**SMALL), {"seed": 9}, Adapter, CheckpointError),
        (qpeft.QPAConfig(**SMALL), {"n_layers": "x"}, Adapter, InputError),
        (qpeft.BottleneckConfig(), {}, Adapter, ConfigError),
        (qpeft.QuantumPeftConfig(**FRAMED, frame="weights"), {}, Adapter, InputError),
        (qpeft.QPAConfig(**SMALL, feature_source="free"), {}, angle_movement, ConfigError),
        (qpeft.QuantumPeftConfig(r=2, family="lie", **LM), {}, angle_movement, ConfigError),
        (qpeft.QuantumPeftConfig(**PAULI, freeze_angles=True), {}, angle_movement, ConfigError),
        (qpeft.QuantumPeftConfig(**PAULI, bits=8), {}, angle_movement, ConfigError),
        (LoraConfig(target_modules=["q_proj"]), {}, angle_movement, ConfigError),
    ],
)
def test_folder_that_cannot_be_measured_is_refused(base, tmp_path, config, changed, call, error):
    moved(get_peft_model(base(), config), tmp_path / "adapter")
    edit_config(tmp_path / "adapter", **changed)
    with pytest.raises(error):
        call(tmp_path / "adapter")
