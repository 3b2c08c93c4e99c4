"""Adapters read from their folders equal the loaded models; no base is needed, or its shapes only."""

import json

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import qpeft
from qpeft.diagnostics.adapter import read_adapter
from qpeft.diagnostics.diagnosis import diagnose
from qpeft.diagnostics.effective_rank import effective_rank
from qpeft.diagnostics.target import of_config, of_folder
from qpeft.errors import CheckpointError, ConfigError

SMALL = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def moved(model, folder):
    """`model` with changed parameters, saved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return model


def updates_of(model, ids):
    """dW of every adapted module of the model, without LoRA's scale."""
    with torch.no_grad():
        model(input_ids=ids)
    layers = {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    return {name: layer.lora_B["default"].weight @ layer.lora_A["default"].weight for name, layer in layers.items()}


@pytest.mark.parametrize(
    "settings", [{}, {"init_mode": "raw", "seed": 3}, {"vector_order": "official"}, {"use_dora": True}]
)
def test_factors_of_qpa_need_no_base(llama, ids, tmp_path, settings):
    model = moved(get_peft_model(llama, qpeft.QPAConfig(**SMALL, **settings)), tmp_path)
    wanted = updates_of(model, ids)
    found = read_adapter(tmp_path).factors()
    assert found.keys() == wanted.keys()
    for name, (b, a) in found.items():
        torch.testing.assert_close(b @ a, wanted[name])


def test_factors_of_quantum_peft_need_the_shapes_of_the_base(llama, ids, tmp_path):
    config = qpeft.QuantumPeftConfig(r=2, n_layers=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = moved(get_peft_model(llama, config), tmp_path / "adapter")
    wanted = updates_of(model, ids)
    llama_base = type(llama)(llama.config)
    for name, (b, a) in read_adapter(tmp_path / "adapter").factors(llama_base).items():
        torch.testing.assert_close(b @ a, wanted[name], msg=name)
    with pytest.raises(ConfigError, match="no model at"):
        read_adapter(tmp_path / "adapter").factors(str(tmp_path / "absent"))


@pytest.mark.parametrize("mode", ["residual", "raw"])
def test_qpa_over_a_prefix_has_ranks_of_chunks_only(gpt2, tmp_path, mode):
    host = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    settings = qpeft.QPAGeneratorConfig(hidden=(6, 5), chunk_size=16, n_layers=3, init_mode=mode)
    model = moved(qpeft.attach(get_peft_model(gpt2, host), settings), tmp_path)
    (generator,) = (m for m in model.modules() if type(m).__name__ == "QPAGenerator")
    target = of_folder(tmp_path)
    assert target.generator is not None
    with torch.no_grad():
        torch.testing.assert_close(target.generator(), generator())
    found = diagnose(target, samples=10)
    assert set(found["rank"].measurements) == {"chunks", "change"}
    assert "the host adapter is not LoRA" in found["rank"].left_out[0]


def test_factors_of_stock_dora(gpt2, ids, tmp_path):
    model = moved(get_peft_model(gpt2, LoraConfig(r=3, target_modules=["c_attn"], use_dora=True)), tmp_path)
    wanted = updates_of(model, ids)
    found = read_adapter(tmp_path).factors()
    assert {m.numerical_rank for m in effective_rank(found).matrices} == {3}
    for name, (b, a) in found.items():
        torch.testing.assert_close(b @ a, wanted[name])


def test_circuit_of_a_folder_equals_that_of_the_model(llama, tmp_path):
    model = moved(get_peft_model(llama, qpeft.QPAConfig(**SMALL)), tmp_path)
    circuit = of_folder(tmp_path).circuit
    assert circuit is not None
    (feature,) = (m for m in model.modules() if type(m).__name__ == "CircuitFeature")
    torch.testing.assert_close(circuit.angles, feature.angles().double())
    torch.testing.assert_close(circuit.start, feature.angles(initial=True).double())
    assert circuit.is_moved
    assert circuit.ansatz.angle_shape == tuple(circuit.angles.shape)


def test_config_has_the_initial_values_of_the_model(llama):
    config = qpeft.QPAConfig(**{**SMALL, "chunk_size": None}, budget=0.9, seed=5)
    target = of_config(config, qpeft.plan(llama, config), "config")
    model = get_peft_model(llama, config)
    (generator,) = (m for m in model.modules() if type(m).__name__ == "QPAGenerator")
    assert target.generator is not None
    assert target.circuit is not None
    assert not target.circuit.is_moved
    with torch.no_grad():
        torch.testing.assert_close(target.generator.chunks(), generator.chunks())


@pytest.mark.parametrize(("n_qubits", "n_left_out"), [(14, 0), (15, 4)])
def test_wide_circuit_is_not_sampled(n_qubits, n_left_out):
    counts = {"trainable": 0, "trainable_parts": {}, "deployed": 0, "stored_bytes": 0, "exported_bytes": 0}
    size = {"n_chunks": 2**n_qubits, "chunk_size": 1, "hidden": (2,)}
    plan = qpeft.Plan(method="qpa", needs_qpeft=True, base_parameters=0, target_modules=[], **counts, **size)
    target = of_config(qpeft.QPAGeneratorConfig.paper(n_layers=2), plan, "wide")
    found = diagnose(target, samples=10)
    assert dict(found.facts)["Qubits"] == str(n_qubits)
    reasons = [
        reason for finding in found.findings for reason in finding.left_out if f"{n_qubits} qubits would" in reason
    ]
    assert len(reasons) == n_left_out
    assert found["random"].measurements["start"].n_outcomes == 2**n_qubits
    assert max(found["gradients"].measurements["2 layers"].n_qubits) == 14


def test_edited_folder_is_refused(llama, gpt2, tmp_path):
    moved(get_peft_model(llama, qpeft.QPAConfig(**SMALL)), tmp_path)
    file = tmp_path / "adapter_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "seed": 9}))
    with pytest.raises(CheckpointError, match="seed 9"):
        of_folder(tmp_path)
    file.write_text(json.dumps({**written, "angle_scale": 9.0}))
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        of_folder(tmp_path)
    file.write_text(json.dumps({**written, "weights_sha256": None}))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("angles.tau"))
    save_file({**tensors, name: tensors[name] * torch.nan}, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        of_folder(tmp_path)


def test_sora_is_diagnosed_by_its_exported_lora(gpt2, ids, tmp_path):
    model = moved(get_peft_model(gpt2, qpeft.SoRAConfig(r=2, target_modules=["c_attn"])), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="SORA, to which no measurement applies"):
        of_folder(tmp_path / "adapter")
    qpeft.export(model, tmp_path / "exported")
    found = diagnose(of_folder(tmp_path / "adapter", tmp_path), samples=10)
    assert found["rank"].measurements == {"updates": effective_rank(read_adapter(tmp_path / "exported").factors())}
    assert found["rank"].measurements["updates"].numerical_rank == 2
    assert "no circuit whose angles are trained" in found["moved"].left_out[0]


@pytest.mark.parametrize("damage", [5, [5], [["a", None]], [["a", [-1]]], [["a", [2, "x"]]], [["a", [2**40]]]])
@pytest.mark.filterwarnings("ignore:QPA trains")  # the model is tiny
@pytest.mark.parametrize("is_attached", [False, True])
def test_damaged_table_of_tensors_is_refused(llama, tmp_path, damage, is_attached):
    if is_attached:
        model = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
        qpeft.save(qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=16)), tmp_path)
    else:
        moved(get_peft_model(llama, qpeft.QPAConfig(**SMALL)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "generated": damage}))
    with pytest.raises(CheckpointError, match="table of generated tensors in"):
        of_folder(tmp_path)
