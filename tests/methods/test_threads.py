"""One thread trains while others use the same model: the losses are those of one thread, as with stock adapters."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig
from variants import VARIANTS, Variant

import qpeft

pytestmark = [
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
]
ATTACHED = ["attached to lora", "attached to a prefix"]
STOCK = Variant("lora", LoraConfig, {"r": 2, "target_modules": "all-linear"})  # the reference


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def train(model, ids, meanwhile=lambda: None, steps=3):
    """Losses and parameters; `meanwhile` runs inside each forward pass and recomputation, and around the backward."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    mine, nested = threading.get_ident(), []

    def inside(*_):
        if threading.get_ident() == mine and not nested:
            nested.append(True)
            meanwhile()
            nested.pop()

    handle = model.get_base_model().model.layers[1].register_forward_pre_hook(inside)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        meanwhile()
        loss.backward()
        meanwhile()
        optimizer.step()
        losses.append(loss.item())
    handle.remove()
    return losses, [p.detach().clone() for p in trained]


def evaluate(model, ids, folder):
    with torch.no_grad():
        model(input_ids=ids)


def infer(model, ids, folder):
    with torch.inference_mode():
        model(input_ids=ids)


def save(model, ids, folder):
    qpeft.save(model, folder / "saved")


@pytest.mark.parametrize("name", ["qpa", "quantum_peft in frames", "qaa", "sora", "bottleneck", *ATTACHED, "stock"])
def test_use_in_another_thread_does_not_change_training(llama, ids, name, tmp_path):
    """At each of the three places of a step another use in each of the three steps."""
    model, calls = {**VARIANTS, "stock": STOCK}[name].adapt(llama), []

    def use():
        calls.append((evaluate, infer, save)[(len(calls) + len(calls) // 3) % 3])
        in_thread(lambda: calls[-1](model, ids.flip(0), tmp_path))

    expected = train(copy.deepcopy(model), ids)
    torch.testing.assert_close(train(model, ids, use), expected, rtol=0, atol=0)
    assert len(calls) == 9


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", ["qpa", "attached to lora", "stock"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_evaluation_during_recomputation_does_not_change_training(llama, ids, name, reentrant):
    model = {**VARIANTS, "stock": STOCK}[name].adapt(llama).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    expected = train(copy.deepcopy(model), ids)
    found = train(model, ids, lambda: in_thread(lambda: evaluate(model, ids.flip(0), None)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
