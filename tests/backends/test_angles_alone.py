"""Only the angles are trained: what is learned then, on trained weights, came through the backend and its gradients."""

import numpy as np
import pytest
import torch

import qpeft
import qpeft.demo
from qpeft.backends import Backend

STEPS = 15
GAIN = 0.015  # nats a token; exact probabilities gain 0.05, with shots 0.025 or more, rubbish loses


class Rubbish(Backend):
    """Answers with probabilities that have nothing to do with the angles."""

    name = "rubbish"
    default_shots = 1000

    def __init__(self):
        self._draw = np.random.default_rng(0)

    def run(self, ansatz, angles, shots, seed):
        return self._draw.dirichlet(np.ones(2**ansatz.n_qubits), size=len(angles))


@pytest.fixture(scope="module")
def ids():
    from transformers import AutoTokenizer

    from qpeft.demo.corpus import numpy_docs

    tokenizer = AutoTokenizer.from_pretrained(qpeft.demo.base_path())
    text = "\n\n".join(numpy_docs()[:6])
    return tokenizer(text, return_tensors="pt", verbose=False).input_ids[0][:512].view(4, 128)


def gain(ids, backend, **options):
    """Loss before minus loss after, both from exact probabilities."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(qpeft.demo.base_path(), dtype="float32")
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["c_fc"], "chunk_size": 360, "n_layers": 3}
    generator = {"activation": "identity", "hidden": (8,), "output_scale": 5.0}
    model = get_peft_model(base, qpeft.QPAConfig(**settings, **generator, task_type="CAUSAL_LM"))
    angles = [p.requires_grad_("angles" in name) for name, p in model.named_parameters() if p.requires_grad]
    optimiser = torch.optim.Adam([p for p in angles if p.requires_grad], lr=1e-3)
    losses = []
    for steps in (0, STEPS):
        qpeft.set_backend(model, backend, **options)
        for _ in range(steps):
            optimiser.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
        qpeft.set_backend(model)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    return losses[0] - losses[1]


@pytest.mark.filterwarnings("ignore:QPA trains:UserWarning")
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("exact", {"shots": 8192}),
        ("exact", {"shots": 8192, "smoothing": 0.5}),
        ("pennylane:lightning.qubit", {}),
        ("pennylane:default.qubit", {"shots": 8192}),
        ("pennylane:default.mixed", {"noise": 0.01}),
        ("qiskit:statevector", {"shots": 8192}),
        ("qiskit:aer", {"shots": 8192, "noise": 0.01}),
    ],
)
def test_angles_learn_through_every_backend(ids, backend, options):
    pytest.importorskip(backend.partition(":")[0].replace("exact", "torch"))
    assert gain(ids, backend, **options) > GAIN


@pytest.mark.filterwarnings("ignore:QPA trains:UserWarning")
def test_angles_learn_nothing_from_a_backend_that_answers_rubbish(ids):
    assert gain(ids, Rubbish()) < 0
