"""The contract of a generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load, save
from torch import Tensor

from qpeft.core.generator import Generator
from qpeft.core.generator_state import check_tensors
from qpeft.errors import CheckpointError
from qpeft.testing.slopes import slope

_STEP = 3e-5  # of differences in float64: truncation and rounding are then about 1e-11 of the gradient's norm
_SLOPE, _ROUNDING = 1e-9, 1e-10


def generator_contract(
    make: Callable[[int], Generator],
    *,
    initial: Tensor | None = None,
    n_trained: int | None = None,
    dense_reference: Callable[[Generator], Tensor] | None = None,
    make_other: Callable[[], Generator] | None = None,
    device: str = "cpu",
) -> None:
    """Assert what every generator owes its users; raises AssertionError at the first broken promise.

    Checked: a flat float32 tensor; the start, drawn from the seed alone; the same bits from every evaluation, under
    autocast and after `.to(torch.bfloat16)`; `device`; the gradients of all trained numbers against finite differences
    in float64; the state through a file and back, also over another `initial`; the state of another seed, and of other
    settings, refused.

    Args:
        make: A new, untrained generator from a seed; the seeds 0 and 1 are used.
        initial: Where it starts, flat (P,), float32, to the bit; None for a generator that starts elsewhere. The very
            tensor that `make` puts into the generator: it holds other numbers for a moment, to see that it is saved.
        n_trained: How many numbers it trains, as its settings count them.
        dense_reference: From a generator to its numbers, flat (P,), by means that share no code with it: matrices in
            NumPy, for example. Compared in float64 (1e-9).
        make_other: A generator of seed 0 that differs from `make(0)` in one setting, at best one that changes no shape.
            Without it nobody sees a fingerprint that leaves the settings out.
        device: Where it runs beside the CPU.
    """
    _check_start(make, initial, n_trained)
    trained = make(0)
    start = trained().detach().clone()
    assert not torch.equal(_moved(trained)(), start), (
        "other trained numbers give the same output: `forward` must use them, and keep nothing from call to call"
    )
    _check_bits(trained)
    _check_device(trained, device)
    _check_state(make, trained, make_other)
    if initial is not None:
        _check_initial(make, trained, initial)
    double = copy.deepcopy(trained).double()
    if dense_reference is not None:
        distance = (double() - dense_reference(double)).abs().max().item()
        assert distance <= 1e-9, f"off by {distance:.1e} from the dense reference, allowed 1e-9"
    _check_gradients(double)


def _check_start(make: Callable[[int], Generator], initial: Tensor | None, n_trained: int | None) -> None:
    generator = make(0)
    assert isinstance(generator, Generator), "make() must give a qpeft.core.generator.Generator"
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


def _check_state(
    make: Callable[[int], Generator], trained: Generator, make_other: Callable[[], Generator] | None
) -> None:
    saved = _saved(trained)
    state = load(saved)
    assert "fingerprint" in state, "no fingerprint: register the buffer `fingerprint(start.hexdigest(), settings)`"
    twin = make(0)
    unpacked = twin.unpack(state)
    try:
        check_tensors(unpacked, twin.state_dict())
    except CheckpointError as error:
        raise AssertionError(f"its own state is refused: {error}") from error
    twin.load_state_dict(unpacked)
    assert torch.equal(twin(), trained()), "a saved generator gives other numbers: the state dict misses some of it"
    assert _refuses(make(1), saved), (
        "another seed's state is taken: put start.hexdigest() into the fingerprint, after all is drawn"
    )
    assert make_other is None or _refuses(make_other(), saved), (
        "the state of other settings is taken: put every setting into the fingerprint, after all is drawn"
    )


def _saved(generator: Generator) -> bytes:
    return save({name: tensor.clone().contiguous() for name, tensor in generator.pack(generator.state_dict()).items()})


def _refuses(generator: Generator, saved: bytes) -> bool:
    try:
        check_tensors(generator.unpack(load(saved)), generator.state_dict())
    except CheckpointError:
        return True
    return False


def _check_initial(make: Callable[[int], Generator], trained: Generator, initial: Tensor) -> None:
    saved, expected = _saved(trained), trained().detach().clone()
    with _other_numbers(initial):
        twin = make(0)
        assert torch.equal(twin(), initial), "give as `initial` the very tensor that make() puts into the generator"
        twin.load_state_dict(twin.unpack(load(saved)))
        assert torch.equal(twin(), expected), (
            "over another `initial` its state gives other numbers: save `initial` (a persistent buffer), which PEFT "
            "drew and nobody can draw again"
        )


@contextmanager
def _other_numbers(initial: Tensor) -> Iterator[None]:
    kept = initial.clone()
    try:
        initial.mul_(-0.5).add_(1)
        yield
    finally:
        initial.copy_(kept)


def _check_gradients(generator: Generator) -> None:
    """Along a direction of each parameter tensor in which every number moves equally far.

    An entry of average size that is off by 0.1 % moves the slope by 1e-3 / n of the gradient's norm, n numbers in the
    tensor: seen up to n of about a million.
    """
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(generator().shape, generator=draw, dtype=torch.float64)
    names, parameters = zip(*generator.named_parameters(), strict=True)
    gradients = torch.autograd.grad(generator() @ weights, parameters, allow_unused=True)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        assert gradient is not None, f"{name} has no gradient: every parameter must enter `forward`"
        idle = int((gradient == 0).sum())
        assert not idle, f"{idle} of {gradient.numel()} numbers of {name} have the gradient 0: do they enter `forward`?"
        signs = torch.randint(2, parameter.shape, generator=draw, dtype=torch.float64) * 2 - 1
        direction = signs / parameter.numel() ** 0.5
        expected = slope(lambda: generator() @ weights, [parameter], [direction], _STEP)
        distance = abs((gradient * direction).sum().item() - expected)
        allowed = _SLOPE * gradient.norm().item() + _ROUNDING
        assert distance <= allowed, f"the gradient of {name} is off by {distance:.1e} from finite differences"


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
