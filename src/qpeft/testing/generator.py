"""The contract of a generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load, save
from torch import Tensor

from qpeft.core.generator import Generator
from qpeft.core.load_checks import check_tensors
from qpeft.errors import CheckpointError
from qpeft.testing.finite_differences import slope

_STEP = 3e-5  # of differences in float64: their error is about 1e-11 of the gradient's norm
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
    """Check the contract of a generator; raises AssertionError at the first violation.

    Checked: the output is a flat, finite float32 tensor with a gradient; initial values depend on the seed only; every
    evaluation gives the same bits, also after `.eval()`, under autocast and after `.to(torch.bfloat16)`; it runs on
    `device`; the gradients of all parameters match finite differences in float64; the state can be saved and loaded,
    also over another `initial`; the state of another seed or of other settings is refused.

    Args:
        make: Returns a new, untrained generator for a seed; the seeds 0 and 1 are used.
        initial: The exact output before training, flat (P,), float32; None for a generator with another one. It must be
            the tensor object that `make` passes to the generator: it is changed temporarily, to test that it is saved.
        n_trained: The number of trainable parameters, as counted by its settings.
        dense_reference: From a generator to its output, flat (P,), without its code, for example by NumPy matrices.
            Compared in float64 (1e-9).
        make_other: Returns a generator of seed 0 that differs from `make(0)` in one setting, if possible without
            changing shapes. Without it, a fingerprint without the settings is not detected.
        device: A device to test in addition to the CPU.
    """
    _check_start(make, initial, n_trained)
    trained = make(0)
    untrained = trained().detach().clone()
    assert not torch.equal(_perturbed(trained)(), untrained), (
        "the output does not depend on the parameters: `forward` must use them, and must not cache between calls"
    )
    _check_bits(trained)
    _check_device(trained, device)
    _check_state(make, trained, make_other)
    if initial is not None:
        _check_initial(make, trained, initial)
    double = copy.deepcopy(trained).double()
    if dense_reference is not None:
        value = double().detach()
        reference = torch.as_tensor(dense_reference(double))
        assert reference.shape == value.shape, (
            f"the dense reference has shape {tuple(reference.shape)}, the output {tuple(value.shape)}"
        )
        distance = (value - reference).abs().max().item()
        assert distance <= 1e-9, f"off by {distance:.1e} from the dense reference, allowed 1e-9"
    _check_gradients(double)


def _check_start(make: Callable[[int], Generator], initial: Tensor | None, n_trained: int | None) -> None:
    generator = make(0)
    assert isinstance(generator, Generator), "make() must return a qpeft.core.generator.Generator"
    assert "fingerprint" in generator.state_dict(), (
        "no fingerprint: register the buffer `fingerprint(init.hexdigest(), settings)`"
    )
    flat = generator()
    assert isinstance(flat, Tensor), f"the output must be a torch.Tensor, got {type(flat)}"
    assert flat.ndim == 1, f"the output must be flat (P,), got shape {tuple(flat.shape)}"
    assert flat.dtype == torch.float32, f"the output must be float32, got {flat.dtype}"
    assert torch.isfinite(flat).all(), "the output before training contains NaN or Inf"
    found = sum(p.numel() for p in generator.parameters())
    assert found, "there are no trainable parameters: a generator needs some"
    assert n_trained in (None, found), f"there are {found} trainable parameters, {n_trained} were counted"
    assert flat.requires_grad, "the output has no gradient: `forward` must not detach it, nor leave torch"
    if initial is not None:
        assert torch.equal(flat, initial), (
            "the initial output must equal `initial` exactly: add the change by training, G - G_ref"
        )
    with torch.random.fork_rng():
        torch.manual_seed(1)  # must have no effect on a generator
        again = make(0)
    assert _same_tensors(generator, again), "two generators of one seed differ: draw from `init`, not from torch"
    assert torch.equal(again(), flat), (
        "two generators of one seed have different outputs: draw from `init`, not from torch"
    )


def _check_bits(generator: Generator) -> None:
    flat = generator()
    assert torch.equal(generator(), flat), "two evaluations differ: `forward` must be deterministic"
    assert torch.equal(copy.deepcopy(generator).eval()(), flat), (
        "eval() changes the output: the exported adapter would not be the trained one"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator(), flat), "autocast changes the output: do not override `Generator.__call__`"
    half = copy.deepcopy(generator).bfloat16()
    kinds = {t.dtype for t in (*half.parameters(), *half.buffers()) if t.is_floating_point()}
    assert kinds == {torch.float32}, f".to(bfloat16) left {kinds}: register all tensors as parameters or buffers"
    assert torch.equal(half(), flat), ".to(bfloat16) changes the output: a generator must stay in float32"


def _check_device(generator: Generator, device: str) -> None:
    expected = generator()
    found = copy.deepcopy(generator).to(device)()
    assert found.device.type == torch.device(device).type, f"on {device} the output is on {found.device}"
    assert torch.allclose(found.cpu(), expected, atol=1e-5, rtol=1e-5), (
        f"the output on {device} differs from that on the CPU"
    )


def _check_state(
    make: Callable[[int], Generator], trained: Generator, make_other: Callable[[], Generator] | None
) -> None:
    saved = _saved(trained)
    state = load(saved)
    twin = make(0)
    unpacked = twin.unpack(state)
    try:
        check_tensors(unpacked, twin.state_dict())
    except CheckpointError as error:
        raise AssertionError(f"its own saved state is refused: {error}") from error
    twin.load_state_dict(unpacked)
    assert torch.equal(twin(), trained()), "a loaded generator has a different output: the state dict is incomplete"
    assert _refuses(make(1), saved), (
        "the state of another seed is accepted: include init.hexdigest() in the fingerprint, after the last draw"
    )
    assert make_other is None or _refuses(make_other(), saved), (
        "the state of other settings is accepted: include every setting in the fingerprint, after the last draw"
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
    with _changed(initial):
        twin = make(0)
        assert torch.equal(twin(), initial), "`initial` must be the tensor object that make() passes to the generator"
        twin.load_state_dict(twin.unpack(load(saved)))
        assert torch.equal(twin(), expected), (
            "loading the state over another `initial` changes the output: save `initial` as a persistent buffer; "
            "PEFT drew it and it cannot be drawn again"
        )


@contextmanager
def _changed(initial: Tensor) -> Iterator[None]:
    kept = initial.clone()
    try:
        initial.mul_(-0.5).add_(1)
        yield
    finally:
        initial.copy_(kept)


def _check_gradients(generator: Generator) -> None:
    """Compare derivatives along one direction per parameter tensor, in which all entries change equally.

    A gradient entry of average size with an error of 0.1 % changes the derivative by 1e-3 / n of the norm of the
    gradient, with n entries in the tensor; this is detected up to n of about a million.
    """
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(generator().shape, generator=draw, dtype=torch.float64)
    names, parameters = zip(*generator.named_parameters(), strict=True)
    gradients = torch.autograd.grad(generator() @ weights, parameters, allow_unused=True)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        assert gradient is not None, f"{name} has no gradient: `forward` must use every parameter"
        unused = int((gradient == 0).sum())
        assert not unused, f"{unused} of {gradient.numel()} entries of {name} have gradient 0: does `forward` use them?"
        signs = torch.randint(2, parameter.shape, generator=draw, dtype=torch.float64) * 2 - 1
        direction = signs / parameter.numel() ** 0.5
        expected = slope(lambda: generator() @ weights, [parameter], [direction], _STEP)
        distance = abs((gradient * direction).sum().item() - expected)
        allowed = _SLOPE * gradient.norm().item() + _ROUNDING
        assert distance <= allowed, f"the gradient of {name} is off by {distance:.1e} from finite differences"


@torch.no_grad()
def _perturbed(generator: Generator) -> Generator:
    """Change all parameters, because gradients may be 0 at the initial values."""
    draw = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
    return generator


def _same_tensors(one: Generator, other: Generator) -> bool:
    mine, its = (dict([*g.named_parameters(), *g.named_buffers()]) for g in (one, other))
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
