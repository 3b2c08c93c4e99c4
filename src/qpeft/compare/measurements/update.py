"""Measurements of the update of one module, Delta(x) = y_adapted(x) - y_base(x): its rank and its linearity.

Sums are in float64. The change of a weight is computed from the outputs for unit vectors, in the same way for every
method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpeft.compare.measurements.ranks import centred, effective_rank, numerical_rank, stable_rank

RIDGE = 1e-3
_N_LOCAL = 256  # tokens for the mean Jacobian and the tests of norm and sign
_N_PROBES = 64
_ROUNDING = 8.0  # an update below this many units of rounding of y is none

Map = Callable[[Tensor], Tensor]  # (n, d_in) -> (n, d_out)

SPREAD = ("effective_rank", "mean_share", "linear_share", "update_ratio")
LOCAL = ("jacobian_rank", "change_at_2x", "change_at_minus_x")
WEIGHT = ("weight_effective_rank", "weight_numerical_rank", "weight_stable_rank", "weight_norm_ratio")

NO_UPDATE = "the update is no larger than rounding"
NOT_FINITE = "the outputs of the adapted model are not finite"
CONSTANT = "the update is a constant"
NOT_LINEAR = "the update is not linear in its input"


def spread(x: Tensor, delta: Tensor, y: Tensor) -> dict[str, float | None]:
    """Measurements of Delta (n, d_out) for inputs x (n, d_in) and the base's outputs y (n, d_out); None without update.

    `effective_rank` of Delta's centred covariance; `mean_share` = ||E Delta||^2 / E||Delta||^2, which is 1 for a
    constant; `linear_share`, see the function; `update_ratio` = sqrt(E||Delta||^2 / E||y||^2).
    """
    delta, noise = delta.double(), _noise(y)
    if not delta.norm() > noise:
        return dict.fromkeys(SPREAD)
    size = delta.square().sum(1).mean()
    around = centred(delta)
    constant = bool(around.norm() <= noise)
    return {
        "effective_rank": 0.0 if constant else effective_rank(_variances(around)),
        "mean_share": (delta.mean(0).square().sum() / size).item(),
        "linear_share": None if constant else linear_share(x, delta),
        "update_ratio": (size / y.double().square().sum(1).mean()).sqrt().item(),
    }


def linear_share(x: Tensor, delta: Tensor) -> float | None:
    """The share of Delta's variance that an affine map of x explains on held-out tokens; None without variance.

    1 - ||Delta - B x - b||^2 / ||Delta - E Delta||^2 on the second half of the tokens. B and b are fitted on the first
    half; B minimizes the squares plus 1e-3 times the mean variance of x's coordinates times ||B||^2 (for each token).
    """
    x, delta, half = x.double(), delta.double(), len(x) // 2
    around, target = centred(x[:half]), centred(delta[:half])
    gram = around.T @ around
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.lstsq(gram + ridge, around.T @ target).solution
    predicted = (x[half:] - x[:half].mean(0)) @ weights + delta[:half].mean(0)
    total = centred(delta[half:]).square().sum()
    return (1 - (delta[half:] - predicted).square().sum() / total).item() if total > 0 else None


def measure_module(base: Map, adapted: Map, x: Tensor) -> dict[str, Any]:
    """All measurements of one adapted module on inputs x (n, d_in), with a reason for each that is None.

    In addition to those of `spread`: `linear`, whether Delta is an affine map; `weight_...`: effective, numerical and
    stable rank of its matrix Delta W, and ||Delta W||_F / ||W0||_F; `jacobian_rank`: effective rank of E dDelta/dx over
    256 tokens, projected on the 64 leading directions of Delta (of Delta W for a linear one); `change_at_2x` and
    `change_at_minus_x`: ||Delta(2x) - Delta(x)|| / ||Delta(x)|| and the same for -x: 1 and 2 for a linear map, 0 and 0
    if neither norm nor sign of the input matters.
    """
    y = base(x)
    delta = adapted(x).double() - y.double()
    found: dict[str, Any] = {**spread(x, delta, y), **dict.fromkeys((*LOCAL, *WEIGHT)), "linear": None}
    if found["update_ratio"] is None:
        why = NO_UPDATE if delta.isfinite().all() else NOT_FINITE
        return {**found, "null_reasons": dict.fromkeys((*SPREAD, *LOCAL, *WEIGHT), why)}
    found |= _norm_and_sign(base, adapted, x[:_N_LOCAL])
    found |= _weight(base, adapted, x, delta, y)
    if not found["linear"]:
        found["jacobian_rank"] = mean_jacobian_rank(base, adapted, x[:_N_LOCAL], delta)
    return {**found, "null_reasons": _reasons(found)}


def _reasons(found: dict[str, Any]) -> dict[str, str]:
    why = CONSTANT if found["linear"] else NOT_LINEAR
    return {name: why for name in (*SPREAD, *LOCAL, *WEIGHT) if found[name] is None}


def _norm_and_sign(base: Map, adapted: Map, x: Tensor) -> dict[str, float]:
    at, at_2x, at_minus = (adapted(z).double() - base(z).double() for z in (x, 2 * x, -x))
    return {
        "change_at_2x": ((at_2x - at).norm() / at.norm()).item(),
        "change_at_minus_x": ((at_minus - at).norm() / at.norm()).item(),
    }


def _weight(base: Map, adapted: Map, x: Tensor, delta: Tensor, y: Tensor) -> dict[str, Any]:
    """Measurements of Delta W if Delta is affine on these inputs."""
    width = x.shape[1]
    probe = torch.cat([x.new_zeros(1, width), torch.eye(width, dtype=x.dtype, device=x.device)])
    before, after = base(probe).double(), adapted(probe).double()
    change = after - before
    offset, matrix = change[0], change[1:] - change[0]  # (d_out,), (d_in, d_out)
    missed = (x.double() @ matrix + offset - delta).norm()
    if not missed <= 1e-3 * delta.norm() + _noise(y):
        return {"linear": False}
    s = torch.linalg.svdvals(matrix)
    # rounding of y alone can give singular values up to this
    s = s * (s > torch.finfo(x.dtype).eps / 2 * after.norm())
    if not s.any():
        return {"linear": True, "weight_numerical_rank": 0, "weight_norm_ratio": 0.0}
    rank = effective_rank(s)
    return {
        "linear": True,
        "weight_effective_rank": rank,
        "weight_numerical_rank": numerical_rank(s),
        "weight_stable_rank": stable_rank(s),
        "weight_norm_ratio": (matrix.norm() / (before[1:] - before[0]).norm()).item(),
        "jacobian_rank": rank,
    }


def mean_jacobian_rank(base: Map, adapted: Map, x: Tensor, delta: Tensor) -> float:
    """Effective rank of U' J, J = E dDelta/dx over the tokens x, U the 64 leading directions of Delta (n, d_out)."""
    variances, directions = torch.linalg.eigh(_covariance(centred(delta)))
    kept = directions[:, -min(_N_PROBES, max(1, numerical_rank(variances))) :]
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        sums = ((adapted(x) - base(x)) @ kept.to(x.dtype)).sum(0)  # (k,)
        rows = [torch.autograd.grad(one, x, retain_graph=True)[0].mean(0) for one in sums]
    return effective_rank(torch.linalg.svdvals(torch.stack(rows).double()))


def _variances(around: Tensor) -> Tensor:
    """Eigenvalues of the covariance of centred rows (n, d), from the smaller Gram matrix."""
    smaller = around if around.shape[0] >= around.shape[1] else around.T
    return torch.linalg.eigvalsh(_covariance(smaller)).clamp(min=0)


def _covariance(around: Tensor) -> Tensor:
    return around.T @ around / len(around)


def _noise(y: Tensor) -> Tensor:
    return _ROUNDING * torch.finfo(y.dtype).eps * y.double().norm()
