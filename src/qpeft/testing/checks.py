"""What the contracts share: tables of checks, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor


def run_checks(*checks: tuple[str, Callable[[], object]]) -> None:
    """Run named checks in order; what the first of them raises becomes an AssertionError that
    begins with its name.
    """
    for what, check in checks:
        try:
            check()
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(f"{what}: {kind}{error}") from error


def same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless the tensors have the same bits."""
    assert torch.equal(actual, expected), what


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise AssertionError unless the tensors have one shape and dtype, and all values are within
    `tolerance`.
    """
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def refused(what: str, kind: type[Exception], call: Callable[[], object]) -> None:
    """Raise AssertionError unless the call raises `kind`."""
    with suppress(kind):
        call()
        raise AssertionError(f"{what} is not refused by {kind.__name__}")


@torch.no_grad()
def disturb(parameters: Sequence[Tensor], draw: torch.Generator) -> None:
    """Change the parameters: gradients may be 0 at the initial values."""
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter), alpha=0.02)
