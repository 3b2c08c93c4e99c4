"""The contract of a generator."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from safetensors.torch import load, save
from torch import Tensor

from qpeft.adapters.generator_state import check_tensors
from qpeft.errors import CheckpointError
from qpeft.generators.base import Generator

_STEP = 1e-6  # of finite differences, in float64


def generator_contract(
    make: Callable[[int], Generator],
    *,
    initial: Tensor | None = None,
    n_trained: int | None = None,
    dense_reference: Callable[[Generator], Tensor] | None = None,
    device: str = "cpu",
) -> None:
    """Assert what every generator owes its users; raises AssertionError at the first broken promise.

    Checked: a flat float32 tensor; the start, drawn from the seed alone; the same bits from every evaluation, under
    autocast and after `.to(torch.bfloat16)`; `device`; the gradients of all trained numbers against finite differences
    in float64; the state through a file and back; the state of another seed refused.

    Args:
        make: A new, untrained generator from a seed; the seeds 0 and 1 are used.
        initial: Where it starts, flat (P,), float32, to the bit; None for a generator that starts elsewhere.
        n_trained: How many numbers it trains, as its settings count them.
        dense_reference: From a generator to its numbers, flat (P,), by means that share no code with it: matrices in
            NumPy, for example. Compared in float64 (1e-9).
        device: Where it runs beside the CPU.
    """
    _check_start(make, initial, n_trained)
    trained = _moved(make(0))
    _check_bits(trained)
    _check_device(trained, device)
    _check_state(make, trained)
    double = copy.deepcopy(trained).double()
    if dense_reference is not None:
        distance = (double() - dense_reference(double)).abs().max().item()
        assert distance <= 1e-9, f"off by {distance:.1e} from the dense reference, allowed 1e-9"
    _check_gradients(double)


def _check_start(make: Callable[[int], Generator], initial: Tensor | None, n_trained: int | None) -> None:
    generator = make(0)
    assert isinstance(generator, Generator), "make() must give a qpeft.generators.base.Generator"
    flat = generator()
    assert flat.ndim == 1, f"the numbers must be flat (P,), got shape {tuple(flat.shape)}"
    assert flat.dtype == torch.float32, f"the numbers must be float32, got {flat.dtype}"
    found = sum(p.numel() for p in generator.parameters())
    assert found, "nothing is trained: a generator has parameters"
    assert n_trained in (None, found), f"{found} numbers are trained, {n_trained} were counted"
    if initial is not None:
        assert torch.equal(flat, initial), "the start must be `initial` to the bit: add what training moved, G - G_ref"
    with torch.random.fork_rng():
        torch.manual_seed(1)  # a generator must not care
        again = make(0)
    assert _same_tensors(generator, again), "two of one seed differ: draw from `start`, not from torch"
    assert torch.equal(again(), flat), "two of one seed give other numbers: draw from `start`, not from torch"


def _check_bits(generator: Generator) -> None:
    flat = generator()
    assert torch.equal(generator(), flat), "two evaluations differ: `forward` must draw nothing"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator(), flat), "autocast changes the numbers: leave `Generator.__call__` as it is"
    half = copy.deepcopy(generator).bfloat16()
    kinds = {t.dtype for t in (*half.parameters(), *half.buffers()) if t.is_floating_point()}
    assert kinds == {torch.float32}, f".to(bfloat16) left {kinds}: tensors belong into parameters and buffers"
    assert torch.equal(half(), flat), ".to(bfloat16) changes the numbers: a generator stays in float32"


def _check_device(generator: Generator, device: str) -> None:
    expected, there = generator(), copy.deepcopy(generator).to(device)
    found = there()
    assert found.device.type == torch.device(device).type, f"on {device} the numbers are on {found.device}"
    assert torch.allclose(found.cpu(), expected, atol=1e-5, rtol=1e-5), f"on {device} the numbers differ"


def _check_state(make: Callable[[int], Generator], trained: Generator) -> None:
    state = {name: tensor.clone().contiguous() for name, tensor in trained.pack(trained.state_dict()).items()}
    assert "fingerprint" in state, "no fingerprint: register the buffer `fingerprint(start.hexdigest(), settings)`"
    twin = make(0)
    unpacked = twin.unpack(load(save(state)))
    try:
        check_tensors(unpacked, twin.state_dict())
    except CheckpointError as error:
        raise AssertionError(f"its own state is refused: {error}") from error
    twin.load_state_dict(unpacked)
    assert torch.equal(twin(), trained()), "a saved generator gives other numbers: the state dict misses some of it"
    other = make(1)
    try:
        check_tensors(other.unpack(load(save(state))), other.state_dict())
    except CheckpointError:
        return
    raise AssertionError(
        "another seed's state is taken: put start.hexdigest() into the fingerprint, after all is drawn"
    )


def _check_gradients(generator: Generator) -> None:
    """Along a random direction of each parameter tensor: one wrong entry is enough to be seen."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(generator().shape, generator=draw, dtype=torch.float64)
    value = generator() @ weights
    names, parameters = zip(*generator.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        assert gradient is not None, f"{name} has no gradient: every parameter must enter `forward`"
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        expected = _slope(generator, weights, parameter, direction)
        allowed = 1e-5 * (gradient.norm() * direction.norm() + abs(expected)) + 1e-9
        distance = abs((gradient * direction).sum().item() - expected)
        assert distance <= allowed, f"the gradient of {name} is off by {distance:.1e} from finite differences"


@torch.no_grad()
def _slope(generator: Generator, weights: Tensor, parameter: Tensor, direction: Tensor) -> float:
    values = []
    for sign in (1, -1):
        parameter.add_(direction, alpha=sign * _STEP)
        values.append(generator() @ weights)
        parameter.add_(direction, alpha=-sign * _STEP)
    return ((values[0] - values[1]) / (2 * _STEP)).item()


@torch.no_grad()
def _moved(generator: Generator) -> Generator:
    """With other trained numbers than at the start, where gradients may vanish."""
    draw = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
    return generator


def _same_tensors(one: Generator, other: Generator) -> bool:
    mine, its = (dict([*g.named_parameters(), *g.named_buffers()]) for g in (one, other))
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
