"""CUDA graphs of a generator: on a GPU the same bits; elsewhere with a stand-in that reuses memory as graphs do."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qpeft
from qpeft.core.capture import Captured
from qpeft.errors import TrainingError

CONFIGS = {
    "qpa": lambda: qpeft.QPAConfig(r=2, target_modules="all-linear", budget=0.2, task_type="CAUSAL_LM"),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
}


class Graph:
    """A stand-in for torch.cuda.CUDAGraph: the recorded operations again, on the same memory."""

    def pool(self):
        return None

    def replay(self):
        for function, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True):
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
    binding = model.base_model.generators.bindings["default"]
    binding._captured = Captured(binding.generator)
    binding.invalidate()
    assert binding._captured.is_usable()
    # a graph whose tensors were freed would reuse their memory
    torch.autograd.grad(binding._captured.flat.sum(), binding._captured.inputs, retain_graph=True)
    return binding


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_with_reused_memory_is_equal(kind, ids, stand_in):
    plain, captured = trained(CONFIGS[kind](), ids), trained(CONFIGS[kind](), ids, capture=replay)
    assert all(map(torch.equal, plain, captured))


def test_what_a_graph_cannot_follow(ids, stand_in):
    model = get_peft_model(llama(), CONFIGS["qpa"]())
    binding = replay(model)
    early = model(input_ids=ids, labels=ids).loss
    binding.renew()
    with pytest.raises(TrainingError, match="evaluated again"):
        early.backward()
    binding.generator.mlp.requires_grad_(False)
    assert not binding._captured.is_usable()
    model(input_ids=ids, labels=ids).loss.backward()
    assert binding.generator.feature.angles.tau.grad.any()


def test_tensors_that_a_module_may_drop_are_kept(stand_in):
    generator = replay(get_peft_model(llama(), qpeft.QPAConfig(init_mode="residual", budget=0.2))).generator
    captured, reference = Captured(generator), generator._reference
    generator.to("cpu")  # which drops it
    assert generator._reference is None
    assert any(kept is reference for kept in captured._read)


def test_cpu_is_left_as_it_is(ids):
    assert qpeft.capture(get_peft_model(llama(), CONFIGS["qpa"]())) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", CONFIGS)
def test_graphs_give_equal_bits(kind, ids):
    def capture(model):
        assert qpeft.capture(model) == 1

    plain, captured = (trained(CONFIGS[kind](), ids, "cuda", how) for how in (lambda model: None, capture))
    assert all(map(torch.equal, plain, captured))
