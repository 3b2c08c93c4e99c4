"""CUDA graphs of a generator: on a GPU the same bits; elsewhere with a stand-in that reuses memory as graphs do."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qpeft
from qpeft.core.capture import Captured
from qpeft.errors import ConfigError, TrainingError

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU"
)

CONFIGS = {
    "qpa": lambda: qpeft.QPAConfig(
        r=2, target_modules="all-linear", budget=0.2, task_type="CAUSAL_LM"
    ),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM"
    ),
}


class Graph:
    """A stand-in for torch.cuda.CUDAGraph: the recorded operations again, on the same memory."""

    def pool(self):
        return None

    def replay(self):
        for function, args, kwargs, results in self.calls:
            for old, new in zip(
                tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """A stand-in for torch.cuda.graph."""

    def __init__(self, graph, **_):
        super().__init__()
        self.calls = graph.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, results))
        return results


def trained(config, ids, device="cpu", capture=lambda model: None):
    """The parameters' values after three steps of two micro-batches, and of a plain evaluation in between."""
    torch.manual_seed(0)
    model = get_peft_model(llama(), config).to(device)
    capture(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        for part in ids.to(device).chunk(2):
            model(input_ids=part, labels=part).loss.backward()
        model.base_model.generators.bindings["default"].values()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def replay(model):
    """Use the stand-in's graphs, which `qpeft.capture` does on a GPU only."""
    binding = model.base_model.generators.bindings["default"]
    captured = Captured(binding.generator)

    assert captured.record() is None

    binding.evaluate_by(captured)
    # a graph whose tensors were freed would reuse their memory
    torch.autograd.grad(captured.flat.sum(), captured.inputs, retain_graph=True)
    return captured


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_with_reused_memory_is_equal(kind, ids, stand_in):
    used = []
    plain = trained(CONFIGS[kind](), ids)
    captured = trained(CONFIGS[kind](), ids, capture=lambda model: used.append(replay(model)))
    assert all(map(torch.equal, plain, captured))
    assert used[0].n_calls >= 3


def test_what_a_graph_cannot_follow(ids, stand_in):
    model = get_peft_model(llama(), CONFIGS["qpa"]())
    captured = replay(model)
    binding = model.base_model.generators.bindings["default"]
    early = model(input_ids=ids, labels=ids).loss
    binding.invalidate()
    binding.refresh()

    with pytest.raises(TrainingError, match="evaluated again"):
        early.backward()

    calls = captured.n_calls
    binding.generator.mlp.requires_grad_(False)
    model(input_ids=ids, labels=ids).loss.backward()

    assert binding.generator.feature.angles.tau.grad.any()
    assert captured.n_calls == calls


def test_values_read_outside_of_parameters_end_the_graphs(stand_in):
    model = get_peft_model(llama(), qpeft.QPAConfig(init_mode="residual", budget=0.2))
    captured = replay(model)
    generator = captured._generator
    reference = captured._generator._reference
    captured()

    assert captured.n_calls == 1

    generator.to("cpu")  # which drops it
    assert generator._reference is None
    assert any(kept is reference for kept in captured._read)

    captured()
    assert captured.n_calls == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_copied_model_is_evaluated_without_graphs(kind, ids, stand_in):
    model = get_peft_model(llama(), CONFIGS[kind]())
    captured = replay(model)
    copied = copy.deepcopy(model)
    calls = captured.n_calls

    assert torch.equal(copied(input_ids=ids).logits, model(input_ids=ids).logits)

    copied.base_model.generators.bindings["default"].invalidate()
    copied.base_model.generators.bindings["default"].refresh()
    assert captured.n_calls == calls + 1  # of `model`


WAITS = RuntimeError("called a synchronizing CUDA operation\nat ...")


@pytest.mark.parametrize(
    "owner, name, error, reason",
    [
        (Captured, "_evaluate", WAITS, "waits for the GPU or failed (called a sync"),
        (Captured, "_differentiate", WAITS, "waits for the GPU or failed (called a sync"),
        (torch.cuda, "graph", torch.OutOfMemoryError("no room"), "recording it failed (no room)"),
    ],
)
def test_what_fails_is_not_captured(owner, name, error, reason, stand_in, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(owner, name, fail)
    generator = get_peft_model(llama(), CONFIGS["qpa"]()).base_model.generators["default"]
    captured = Captured(generator)

    assert reason in captured.record()
    assert torch.equal(captured(), generator())


def test_cpu_is_left_as_it_is(ids):
    model = get_peft_model(llama(), CONFIGS["qpa"]())
    assert "on the device 'cpu'" in qpeft.capture(model)["default"]
    model(input_ids=ids, labels=ids).loss.backward()


def test_adapter_without_generator_has_nothing_to_capture():
    assert qpeft.capture(get_peft_model(llama(), LoraConfig(target_modules="all-linear"))) == {}


def test_model_without_adapter_is_refused():
    with pytest.raises(ConfigError, match="adapter"):
        qpeft.capture(llama())


@needs_gpu
@pytest.mark.parametrize("kind", CONFIGS)
def test_graphs_give_equal_bits(kind, ids):
    def capture(model):
        assert qpeft.capture(model) == {"default": None}

    plain, captured = (
        trained(CONFIGS[kind](), ids, "cuda", how) for how in (lambda model: None, capture)
    )
    assert all(map(torch.equal, plain, captured))


@needs_gpu
def test_graphs_are_used_on_a_gpu(ids):
    model = get_peft_model(llama(), CONFIGS["quantum_peft"]()).to("cuda")
    assert qpeft.capture(model) == {"default": None}
    binding = model.base_model.generators.bindings["default"]
    model(input_ids=ids.cuda(), labels=ids.cuda()).loss.backward()
    assert binding._evaluate.n_calls == 1


@needs_gpu
@pytest.mark.parametrize(
    "config, reason",
    [
        (
            qpeft.QuantumPeftConfig(r=2, family="lie", target_modules="all-linear"),
            "waits for the GPU",
        ),
        (qpeft.QPAConfig(r=2, budget=0.2, target_modules="all-linear"), "none of its parameters"),
    ],
)
def test_reason_for_the_plain_way_on_a_gpu(config, reason, ids):
    model = get_peft_model(llama(), config).to("cuda")
    if "none" in reason:
        model.requires_grad_(False)
    assert reason in qpeft.capture(model)["default"]
    model(input_ids=ids.cuda())


@needs_gpu
def test_circuits_on_a_backend_are_not_captured(ids):
    model = get_peft_model(
        llama(), qpeft.QPAConfig(r=2, budget=0.2, target_modules="all-linear")
    ).to("cuda")
    run = qpeft.set_backend(model, shots=50_000)  # enough for its qubits
    used = dict(run.jobs.used)

    assert qpeft.capture(model) == {"default": "its circuits run on a backend"}
    assert run.jobs.used == used
