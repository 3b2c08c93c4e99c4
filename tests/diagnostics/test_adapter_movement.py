"""Movement of angles, measured in models and folders with known changes of tau."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.diagnostics.movement import angle_movement
from qpeft.errors import CheckpointError, ConfigError

SMALL = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def plant(model, ending, change):
    """Apply `change` to tau of every circuit; returns the number of angles."""
    n = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(ending):
                parameter.copy_(change(parameter))
                n += parameter.numel()
    return n


def both(model, folder):
    """The measurement of the model, and of its folder."""
    model.save_pretrained(str(folder))
    return angle_movement(model), angle_movement(folder)


@pytest.mark.parametrize("scale", [10.0, 3.0])
def test_movement_of_qpa(llama, tmp_path, scale):
    model = get_peft_model(llama, qpeft.QPAConfig(**SMALL, angle_scale=scale))
    n = plant(model, "angles.tau", lambda tau: torch.linspace(-0.02, 0.02, tau.numel()).view_as(tau))
    for found in both(model, tmp_path / "adapter"):
        assert found.n_angles == n == len(found.values)
        assert found.maximum == pytest.approx(0.02 * scale)
        assert found.mean == pytest.approx(scale * torch.linspace(-0.02, 0.02, n).abs().mean().item())
        still = (scale * torch.linspace(-0.02, 0.02, n).abs() < 0.01).double().mean().item()
        assert found.still_share == pytest.approx(still)
        assert not found.is_frozen


def test_circuit_that_did_not_move_is_frozen(llama):
    model = get_peft_model(llama, qpeft.QPAConfig(**SMALL))
    assert "None of the" in angle_movement(model).sentence
    plant(model, "angles.tau", lambda tau: torch.full_like(tau, 5e-4))
    found = angle_movement(model)
    assert found.is_frozen
    assert "practically frozen" in found.sentence


def test_movement_of_quantum_peft_and_qaa(llama, gpt2, tmp_path):
    quantum = get_peft_model(
        llama, qpeft.QuantumPeftConfig(r=2, n_layers=1, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    n = plant(quantum, "numbers.tau", lambda tau: torch.full_like(tau, -0.001))
    for found in both(quantum, tmp_path / "quantum"):
        assert found.n_angles == n
        assert found.mean == found.maximum == pytest.approx(0.05)
    qaa = get_peft_model(gpt2, qpeft.QAAConfig(task_type="CAUSAL_LM"))
    n = plant(qaa, "angles.tau", lambda tau: torch.full_like(tau, 0.002))
    for found in both(qaa, tmp_path / "qaa"):
        assert (found.n_angles, found.maximum) == (n, pytest.approx(0.02))


def test_movement_over_another_host(gpt2, tmp_path):
    model = get_peft_model(gpt2, LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    model = qpeft.attach(model, qpeft.QPAGeneratorConfig(hidden=(6, 5), chunk_size=16, n_layers=3))
    plant(model, "angles.tau", lambda tau: torch.full_like(tau, 0.03))
    for found in both(model, tmp_path / "attached"):
        assert found.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: qpeft.QPAConfig(**SMALL, feature_source="free"), "no circuit whose angles are trained"),
        (lambda: qpeft.QPAConfig(**SMALL, feature_source="qnn_frozen"), "no circuit whose angles are trained"),
        (lambda: qpeft.QuantumPeftConfig(r=2, family="lie", target_modules="all-linear"), "family lie"),
        (lambda: qpeft.QuantumPeftConfig(r=2, freeze_angles=True, target_modules="all-linear"), "freeze_angles"),
        (lambda: qpeft.QuantumPeftConfig(r=2, bits=4, target_modules="all-linear"), "quantized"),
    ],
)
def test_adapter_without_trained_angles_is_refused(llama, tmp_path, config, message):
    model = get_peft_model(llama, config())
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError):
        angle_movement(model)
    with pytest.raises(ConfigError, match=message):
        angle_movement(tmp_path)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no adapter folder"):
        angle_movement(tmp_path / "absent")
