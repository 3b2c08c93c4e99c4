"""A step of the angles alone reduces the loss through every backend."""

import numpy as np
import pytest
import torch

import qpeft
import qpeft.demo
from qpeft.backends import Backend

pytestmark = pytest.mark.long

STEP = 0.01  # radians, over all angles together


class RandomBackend(Backend):
    """Returns probabilities that do not depend on the angles."""

    name = "random"
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
    """The reduction of the loss by one step of STEP radians along the gradient of the backend.

    Both losses are of exact probabilities.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(qpeft.demo.base_path(), dtype="float32")
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["c_fc"], "chunk_size": 360, "n_layers": 3}
    generator = {"activation": "identity", "hidden": (8,), "output_scale": 5.0, "angle_scale": 1.0}
    model = get_peft_model(base, qpeft.QPAConfig(**settings, **generator, task_type="CAUSAL_LM"))

    def loss():
        return model(input_ids=ids, labels=ids).loss

    with torch.no_grad():
        before = loss().item()
    (angles,) = (p for name, p in model.named_parameters() if p.requires_grad and "angles" in name)
    qpeft.set_backend(model, backend, **options)
    (gradient,) = torch.autograd.grad(loss(), [angles])
    qpeft.set_backend(model)
    with torch.no_grad():
        angles -= STEP * gradient / gradient.norm()
        return before - loss().item()


@pytest.mark.filterwarnings("ignore:QPA trains:UserWarning")
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("exact", {"shots": 16384}),
        ("exact", {"shots": 16384, "smoothing": 0.5}),
        ("pennylane:lightning.qubit", {}),
        ("pennylane:default.qubit", {"shots": 16384}),
        ("pennylane:default.mixed", {"noise": 0.0003}),
        ("qiskit:statevector", {"shots": 16384}),
        ("qiskit:aer", {"shots": 16384, "noise": 0.0003}),
    ],
)
def test_angles_learn_through_every_backend(ids, backend, options):
    pytest.importorskip(backend.partition(":")[0].replace("exact", "torch"))
    best = gain(ids, "exact")
    assert best > 0
    assert best / 2 < gain(ids, backend, **options) < 1.5 * best


@pytest.mark.filterwarnings("ignore:QPA trains:UserWarning")
def test_angles_do_not_learn_from_random_probabilities(ids):
    assert gain(ids, RandomBackend()) < gain(ids, "exact") / 4
