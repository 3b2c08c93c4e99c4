"""On trained weights: a storyteller adapted to Grimm through PennyLane's devices. Skipped where they are absent."""

import pennylane as qml
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft.backends.pennylane import backend_by_name

DEVICES = {
    "default.qubit with shots": ({"shots": 2000}, lambda: qml.device("default.qubit", wires=5, seed=0)),
    "lightning.qubit": ({}, lambda: qml.device("lightning.qubit", wires=5)),
    "default.mixed with noise": ({}, lambda: backend_by_name("default.mixed", 5, 0.01)),
}


@pytest.mark.long
@pytest.mark.parametrize("given", DEVICES)
def test_a_storyteller_learns_grimm_through_a_device(given, shared, tmp_path):
    """The loss on text that was not trained on falls, of the trained model and of what is exported from it."""
    folder = shared / "models" / "stories260K"
    text = (shared / "data" / "grimm" / "GrimmsFairyTales.txt").read_text(encoding="utf-8")[20_000:40_000]
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False).input_ids[: 48 * 96]).view(48, 96)
    seen, unseen = ids[:32], ids[32:]
    config = qpeft.QPAConfig(
        r=4, lora_alpha=8, target_modules="all-linear", chunk_size=800, hidden=(8, 8), task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    options, device = DEVICES[given]
    run = qpeft.set_backend(model, device(), **options)
    assert run is not None
    assert run.ansatz.n_qubits == 5
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    before = loss_of(model, unseen)
    for step in range(16):
        optimiser.zero_grad()
        model(input_ids=seen[2 * step :][:2], labels=seen[2 * step :][:2]).loss.backward()
        optimiser.step()
    assert loss_of(model, unseen) < before - 0.05
    qpeft.export(model.eval(), tmp_path / "exported")
    qpeft.set_backend(model)
    assert loss_of(model, unseen) < before - 0.05


def loss_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()
