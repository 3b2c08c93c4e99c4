"""The contract of a generator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from safetensors.torch import load, save
from torch import Tensor

from qpeft.core.checkpoint import check_tensors
from qpeft.core.generator import Generator
from qpeft.errors import CheckpointError
from qpeft.testing.checks import close, disturb, refused, run_checks, same


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

    Checked: the output is a flat, finite float32 tensor with a gradient; initial values depend on
    the seed only; every evaluation gives the same bits, also after `.eval()`, under autocast and
    after `.to(torch.bfloat16)`; it runs on `device`; the gradients of all parameters match finite
    differences in float64; the state can be saved and loaded, also over another `initial`; the
    state of another seed or of other settings is refused.

    Args:
        make: Returns a new, untrained generator for a seed; the seeds 0 and 1 are used.
        initial: The exact output before training, flat (P,), float32; None for a generator with
            another one. It must be the tensor object that `make` passes to the generator: it is
            changed temporarily, to test that it is saved.
        n_trained: The number of trainable parameters, as counted by its settings.
        dense_reference: From a generator to its output, flat (P,), without its code, for example by
            NumPy matrices. Compared in float64 (1e-9).
        make_other: Returns a generator of seed 0 that differs from `make(0)` in one setting, if
            possible without changing shapes. Without it, a fingerprint without the settings is not
            detected.
        device: A device to test in addition to the CPU.
    """
    trained = make(0)
    run_checks(("before training", lambda: _check_start(trained, make(0), initial, n_trained)))
    before = trained().detach().clone()
    disturb([*trained.parameters()], torch.Generator().manual_seed(0))
    flat = trained().detach().clone()
    assert not torch.equal(flat, before), (
        "`forward` must use the parameters, and must not cache between calls"
    )
    packed = trained.pack(trained.state_dict())
    saved = save({name: tensor.clone().contiguous() for name, tensor in packed.items()})

    def loaded(into: Generator) -> Tensor:
        state = into.unpack(load(saved))
        check_tensors(state, into.state_dict())
        into.load_state_dict(state)
        return into()

    double = copy.deepcopy(trained).double()
    run_checks(
        ("evaluations", lambda: _check_evaluations(trained, flat, device)),
        (
            "its own saved state",
            lambda: same(loaded(make(0)), flat, "the output differs: a tensor is not saved"),
        ),
        (
            "the fingerprint",
            lambda: refused("the state of another seed", CheckpointError, lambda: loaded(make(1))),
        ),
        ("gradients", lambda: _check_gradients(double)),
    )
    if make_other is not None:
        refused("the state of other settings", CheckpointError, lambda: loaded(make_other()))
    if initial is not None:
        kept = initial.clone()
        initial.mul_(-0.5).add_(1)
        twin = make(0)
        changed = twin().detach().clone()
        restored = loaded(twin)
        initial.copy_(kept)
        same(
            changed,
            1 - 0.5 * kept,
            "`initial` must be the tensor object that make() passes to the generator",
        )
        same(restored, flat, "save `initial` as a persistent buffer: it cannot be drawn again")
    if dense_reference is not None:
        close(double().detach(), torch.as_tensor(dense_reference(double)), 1e-9, "dense reference")


def _check_start(
    generator: Generator, again: Generator, initial: Tensor | None, n_trained: int | None
) -> None:
    assert isinstance(generator, Generator), "make() must return a qpeft.core.generator.Generator"
    assert "fingerprint" in generator.state_dict(), (
        "no fingerprint: register `fingerprint(init.hexdigest(), settings)`"
    )
    flat = generator()
    assert isinstance(flat, Tensor), f"the output must be a torch.Tensor, got {type(flat)}"
    is_flat = flat.ndim == 1 and flat.dtype == torch.float32
    assert is_flat, f"the output must be flat (P,), float32; it has {flat.shape}, {flat.dtype}"
    assert torch.isfinite(flat).all(), "the output before training contains NaN or Inf"
    assert flat.requires_grad, (
        "the output has no gradient: `forward` must not detach it, nor leave torch"
    )
    count = sum(p.numel() for p in generator.parameters())
    is_counted = n_trained is None or n_trained == count
    assert is_counted, f"there are {count} trainable parameters, {n_trained} were counted"
    if initial is not None:
        same(flat, initial, "the initial output must equal `initial` exactly")
    mine, its = (
        dict([*g.named_parameters(), *g.named_buffers(), ("output", g())])
        for g in (generator, again)
    )
    for name, tensor in its.items():
        same(
            mine[name],
            tensor,
            f"two generators of one seed differ in {name}: draw from `init`, not from torch",
        )


def _check_evaluations(generator: Generator, flat: Tensor, device: str) -> None:
    same(generator(), flat, "two evaluations differ: `forward` must be deterministic")
    same(copy.deepcopy(generator).eval()(), flat, "eval() changes the output")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(generator(), flat, "autocast changes the output: do not override `Generator.__call__`")
    half = copy.deepcopy(generator).bfloat16()
    kinds = {t.dtype for t in (*half.parameters(), *half.buffers()) if t.is_floating_point()}
    assert kinds == {torch.float32}, (
        f".to(bfloat16) left {kinds}: register all tensors as parameters or buffers"
    )
    same(half(), flat, ".to(bfloat16) changes the output: a generator must stay in float32")
    there = copy.deepcopy(generator).to(device)()
    assert there.device.type == torch.device(device).type, (
        f"on {device} the output is on {there.device}"
    )
    close(there.cpu(), flat, 1e-5 * (1 + flat.abs().max().item()), f"the output on {device}")


def _check_gradients(generator: Generator) -> None:
    """By `gradcheck` along one random direction per parameter tensor, for random weights of the
    output.

    An error of 0.1 % in one gradient entry of average size is detected in tensors of up to about
    10,000 entries.
    """
    draw = torch.Generator().manual_seed(0)
    start = generator().detach()
    weights = torch.randn(start.shape, generator=draw, dtype=torch.float64)
    for name, parameter in [*generator.named_parameters()]:
        (gradient,) = torch.autograd.grad(generator() @ weights, parameter, materialize_grads=True)
        unused = int((gradient == 0).sum())
        assert not unused, (
            f"{unused} of {gradient.numel()} entries of {name} have gradient 0: does `forward` use"
            " them?"
        )

        def value(at: Tensor, name: str = name) -> Tensor:
            # the change alone: initial values are large, and rounding grows with what is summed
            return (torch.func.functional_call(generator, {name: at}, ()) - start) @ weights

        check = partial(
            torch.autograd.gradcheck,
            value,
            parameter,
            fast_mode=True,
            check_undefined_grad=False,
            # fast_mode multiplies it by the sum of a random unit vector, about sqrt(entries)
            atol=1e-8 * (1 + gradient.norm().item()) / gradient.numel() ** 0.5,
            rtol=0,
        )
        run_checks((f"the gradient of {name}", check))
