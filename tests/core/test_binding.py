"""The autograd boundary: equal to plain autograd and evaluated once per step; regression tests."""

import copy
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils._named_member_accessor import NamedMemberAccessor
from torch.testing import assert_close

import qpeft
from qpeft.core.binding import Binding
from qpeft.core.slots import Slot
from qpeft.errors import ConfigError, TrainingError


class Toy(nn.Module):
    """A generator of 6 parameters that counts its evaluations and backward passes."""

    is_coupled = False

    def __init__(self):
        super().__init__()
        self.angles = nn.Parameter(torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64))
        self.evaluations = self.backwards = 0

    def forward(self):
        self.evaluations += 1
        flat = (
            torch.outer(self.angles, torch.tensor([1.0, 2.0], dtype=torch.float64)).sin().flatten()
        )
        if flat.requires_grad:
            flat.register_hook(self._count)
        return flat

    def _count(self, gradient):
        self.backwards += 1


class Bound:
    """A host whose weights are bound to a generator."""

    def __init__(self):
        maps = {
            "a": nn.Linear(2, 2, bias=False),
            "tanh": nn.Tanh(),
            "b": nn.Linear(2, 1, bias=False),
        }
        self.host, self.generator = nn.Sequential(OrderedDict(maps)).double(), Toy()
        slots = [Slot(maps[n], "weight", n, maps[n].weight.shape, torch.float64) for n in "ab"]
        self.binding = Binding(self.generator, slots)

    def loss(self, x):
        self.binding.refresh()
        return self.host(x).square().sum()


@pytest.fixture
def toy():
    return Bound()


@pytest.fixture
def x():
    return torch.randn(5, 2, dtype=torch.float64)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_gradients_equal_plain_autograd(toy, x):
    toy.loss(x).backward()
    flat = toy.generator()
    a = flat[:4].view(2, 2)
    b = flat[4:].view(1, 2)
    (plain,) = torch.autograd.grad((torch.tanh(x @ a.T) @ b.T).square().sum(), toy.generator.angles)
    assert_close(toy.generator.angles.grad, plain, atol=1e-12, rtol=0)


def test_forward_passes_in_all_modes_share_one_evaluation(toy, x):
    with torch.no_grad():
        toy.loss(x)
    for _ in range(3):
        toy.loss(x).backward()
    with torch.inference_mode():
        toy.loss(x)
    toy.loss(x).backward()

    assert toy.generator.evaluations == 1


def test_second_backward_doubles_the_gradient(toy, x):
    loss = toy.loss(x) + 2 * toy.loss(x + 1)
    loss.backward(retain_graph=True)
    once = toy.generator.angles.grad.clone()
    loss.backward()
    assert_close(toy.generator.angles.grad, 2 * once)


def test_backward_of_an_earlier_forward_uses_the_earlier_values(toy, x):
    loss = toy.loss(x)
    (expected,) = torch.autograd.grad(loss, toy.generator.angles, retain_graph=True)
    with torch.no_grad():
        toy.generator.angles.add_(0.5)
    toy.binding.refresh()
    loss.backward()

    assert_close(toy.generator.angles.grad, expected)


def test_host_has_no_parameters_until_released(toy, x):
    toy.loss(x).backward()
    assert [n for n, _ in toy.host.named_parameters()] == []
    assert toy.host.state_dict() == {}
    toy.binding.release()
    assert sorted(n for n, _ in toy.host.named_parameters()) == ["a.weight", "b.weight"]
    assert_close(toy.host.a.weight.detach().flatten(), toy.generator()[:4].detach())


def test_first_read_after_a_step_evaluates(toy, x):
    """Nothing reads the tensors of before, and a step without a read evaluates nothing."""
    toy.loss(x).backward()
    torch.optim.SGD(toy.generator.parameters(), lr=0.1).step()

    assert toy.generator.evaluations == 1

    # by the model's first map only
    product = toy.host.a.weight @ torch.ones(2, dtype=torch.float64)
    assert toy.generator.evaluations == 2
    assert_close(product, toy.generator()[:4].view(2, 2).sum(1))


def test_tensors_that_wait_for_their_first_read_can_be_inspected(toy):
    toy.binding.invalidate()
    assert toy.host.a.weight.shape == (2, 2)

    toy.binding.invalidate()
    assert torch.equal(torch.stack([toy.host.a.weight, toy.host.a.weight])[1], toy.host.a.weight)

    toy.binding.invalidate()
    assert copy.deepcopy(toy.host.a).weight is None  # the binding of the copy places its own
    assert toy.host.a.weight.device.type == "cpu"
    assert toy.host.a.weight.dtype == torch.float64
    assert toy.generator.evaluations == 3  # device and dtype are known without one


def test_parameters_unfrozen_after_an_evaluation_get_gradients(toy, x):
    toy.generator.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
    toy.generator.forward = lambda: Toy.forward(toy.generator) + toy.generator.shift
    toy.generator.angles.requires_grad_(False)
    toy.loss(x)
    toy.generator.angles.requires_grad_(True)
    toy.loss(x).backward()

    assert toy.generator.angles.grad.all()


@pytest.mark.parametrize("method", ["qpa", "quantum_peft"])
def test_aliases_of_some_parameters_get_the_gradient(llama, ids, method):
    """They have the content that was evaluated, and the graph of that ends in the originals."""
    configs = {"qpa": qpeft.QPAConfig(r=2), "quantum_peft": qpeft.QuantumPeftConfig(r=2)}
    model = get_peft_model(llama, configs[method])
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(0.1)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "angles" in n)

    def loss():
        return model(input_ids=ids, labels=ids).loss

    loss().backward()
    expected = parameter.grad.clone()
    alias = parameter.detach().requires_grad_()
    with swapped(model, {name: alias}):
        loss().backward()
    assert_close(alias.grad, expected)
    assert expected.abs().max() > 0
    parameter.grad = None
    loss().backward()  # the originals again
    assert_close(parameter.grad, expected)


@contextmanager
def swapped(model, tensors):
    """As `torch.func.functional_call` puts other tensors in the place of parameters."""
    accessor = NamedMemberAccessor(model)
    originals, _ = accessor.swap_tensors_dict(tensors)
    yield
    accessor.swap_tensors_dict(originals)


def test_cast_is_undone_where_the_memory_is_reused(toy, x, monkeypatch):
    """The parameters then have the address and version of the last evaluation, through which they
    get no gradient.
    """
    toy.generator.float()
    toy.generator.angles.data = torch.tensor([0.5, -0.75, 1.125])  # also in half precision
    toy.loss(x)
    key = toy.binding._evaluation._key
    monkeypatch.setattr("qpeft.core.binding._key", lambda parameters: key)
    toy.generator.angles.data = toy.generator.angles.data.bfloat16()
    toy.loss(x).backward()

    assert toy.generator.angles.grad.all()


def test_parameters_frozen_after_the_forward_pass_get_no_gradient(toy, x):
    loss = toy.loss(x)
    toy.generator.requires_grad_(False)
    loss.backward()
    assert toy.generator.angles.grad is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own use of it
def test_forward_mode_is_refused(toy, x):
    """The evaluation of an earlier call has no tangents."""
    toy.loss(x)
    with forward_ad.dual_level():
        angles = toy.generator.angles.detach()
        toy.generator._parameters["angles"] = forward_ad.make_dual(angles, angles)
        with pytest.raises(TrainingError):
            toy.loss(x)


def test_second_derivative_and_transforms_are_refused(toy, x):
    parameters = [toy.generator.angles]
    with pytest.raises(TrainingError, match="without create_graph=True"):
        torch.autograd.grad(toy.loss(x), parameters, create_graph=True)

    torch.autograd.grad(toy.loss(x), parameters)

    def loss(angles):
        toy.generator._parameters["angles"] = angles
        return toy.loss(x)

    for transform in (torch.func.grad(loss), torch.func.vmap(toy.loss), torch.func.grad(toy.loss)):
        toy.generator.angles.data.mul_(2)  # so that the transform is what evaluates
        with pytest.raises(TrainingError, match=r"torch\.func\.grad, vmap"):
            transform(torch.ones(4))
    toy.generator._parameters["angles"] = parameters[0]
    toy.loss(x).backward()


def test_partial_gradients_under_ddp_raise(toy, x, monkeypatch):
    loss = toy.loss(x)
    loss.backward(retain_graph=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        loss.backward()


# -- micro-batches


def without_accumulation(*batches, share=0.5, moved=0.0):
    """The gradient of `share` of each batch's loss, at angles that were moved."""
    GradientState._reset_state()
    toy = Bound()
    with torch.no_grad():
        toy.generator.angles.add_(moved)
    for batch in batches:
        (share * toy.loss(batch)).backward()
    return toy.generator.angles.grad


@pytest.mark.parametrize("evaluates", [False, True])
def test_micro_batches_share_one_evaluation(toy, accelerator, x, evaluates):
    """Also with an evaluation of the model between them."""
    optimiser = accelerator.prepare(torch.optim.SGD(toy.generator.parameters(), lr=0.0))
    for n_batches, batch in enumerate((x, x + 1), 1):
        with accelerator.accumulate(toy.generator):
            accelerator.backward(toy.loss(batch))
            assert toy.generator.backwards == n_batches  # nothing waits for the last one
            if evaluates:
                with torch.no_grad():
                    toy.loss(x)
            optimiser.step()

    assert toy.generator.evaluations == 1
    assert_close(toy.generator.angles.grad, without_accumulation(x, x + 1), atol=1e-12, rtol=0)


def test_gradient_of_values_replaced_during_accumulation(toy, accelerator, x):
    with accelerator.accumulate(toy.generator):
        accelerator.backward(toy.loss(x))
    with torch.no_grad():
        toy.generator.angles.add_(0.5)
    with accelerator.accumulate(toy.generator):
        accelerator.backward(toy.loss(x))
    expected = without_accumulation(x) + without_accumulation(x, moved=0.5)

    assert_close(toy.generator.angles.grad, expected, atol=1e-12, rtol=0)


def test_untie_lm_head_without_a_head_or_a_tie(llama):
    weight = llama.lm_head.weight
    assert qpeft.untie_lm_head(llama).lm_head.weight is weight
    with pytest.raises(ConfigError, match="has no output head to untie"):
        qpeft.untie_lm_head(llama.model)


@pytest.mark.parametrize("kind", ["UMT5", "Bart", "SwitchTransformers"])
def test_head_is_not_untied_where_that_changes_more_than_the_head(kind):
    """The logits of UMT5 would be scaled; a saved BART would lose its other embeddings."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    if kind == "Bart":
        parts = ("layers", "attention_heads", "ffn_dim")
        sizes = {"d_model": 8} | {f"{h}_{p}": 2 for h in ("encoder", "decoder") for p in parts}
    config = getattr(transformers, f"{kind}Config")(vocab_size=16, **sizes)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with pytest.raises(ConfigError, match="cannot be untied alone"):
        qpeft.untie_lm_head(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_compact_file_of_a_head_contains_no_base_weight(gpt2, adapters, tmp_path):
    model = adapters.qpa(gpt2, target_modules=["lm_head"])
    with pytest.warns(UserWarning, match="Setting `save_embedding_layers` to `True`"):
        model.save_pretrained(tmp_path)  # as the Trainer calls it
    assert all(
        "qpeft_generator" in key for key in load_file(tmp_path / "adapter_model.safetensors")
    )


def test_unload_removes_only_the_hook_of_qpeft(llama, ids, adapters):
    seen = []
    llama.register_forward_pre_hook(lambda module, args: seen.append(1))
    model = adapters.qpa(llama)

    assert len(llama._forward_pre_hooks) == 2

    base = model.unload()
    assert len(base._forward_pre_hooks) == 1

    adapters.logits(base, ids)
    assert seen


def test_data_parallel_replicas_raise(llama, ids, adapters):
    model = adapters.qpa(llama)
    llama._is_replica = True  # as torch.nn.DataParallel marks its copies
    with pytest.raises(ConfigError, match="torchrun"):
        model(input_ids=ids)
