"""What an adapter adds to one module's output: how many directions it has, and how linear it is.

Of Delta(x) = y_adapted(x) - y_base(x), the same x read by both. Sums run in float64. A change of the weight is read off
the answers to unit vectors, so that every method is measured alike, whatever its layers hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpeft.compare.measurements.ranks import centred, effective_rank, numerical_rank, stable_rank

RIDGE = 1e-3
_N_LOCAL = 256  # tokens for the mean Jacobian and for the tests of norm and sign
_N_PROBES = 64
_ROUNDING = 8.0  # so many units of rounding of y are no update

Map = Callable[[Tensor], Tensor]  # (n, d_in) -> (n, d_out)

SPREAD = ("effective_rank", "mean_share", "linear_share", "update_ratio")
LOCAL = ("jacobian_rank", "change_at_2x", "change_at_minus_x")
WEIGHT = ("weight_effective_rank", "weight_numerical_rank", "weight_stable_rank", "weight_norm_ratio")

NO_UPDATE = "the update is no larger than rounding"
NOT_FINITE = "the adapted model's numbers are not finite"
CONSTANT = "the update is a constant"
NOT_LINEAR = "the update is not linear in its input"


def spread(x: Tensor, delta: Tensor, y: Tensor) -> dict[str, float | None]:
    """How Delta (n, d_out) is spread over inputs x (n, d_in), beside the base's outputs y (n, d_out).

    `effective_rank` of Delta's centred covariance, from its eigenvalues; `mean_share` = ||E Delta||^2 / E||Delta||^2,
    near 1 for a bias in disguise; `linear_share`: the share of the variance that the best affine map of x, fitted with
    a ridge on the first half of the tokens, explains on the second half (below 0: worse than the mean);
    `update_ratio` = sqrt(E||Delta||^2 / E||y||^2). All None where there is no update.
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
    """1 - ||Delta - B x - b||^2 / ||Delta - E Delta||^2 on the second half of the tokens, B and b from the first half.

    B minimises the squares plus 1e-3 times the mean variance of x's coordinates times ||B||^2 (for each token). None
    where the second half has no variance.
    """
    x, delta, half = x.double(), delta.double(), len(x) // 2
    around, target = centred(x[:half]), centred(delta[:half])
    gram = around.T @ around
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.lstsq(gram + ridge, around.T @ target).solution
    predicted = (x[half:] - x[:half].mean(0)) @ weights + delta[:half].mean(0)
    total = centred(delta[half:]).square().sum()
    return (1 - (delta[half:] - predicted).square().sum() / total).item() if total > 0 else None


def module_figures(base: Map, adapted: Map, x: Tensor) -> dict[str, Any]:
    """All figures of one adapted module on inputs x (n, d_in), with a reason for each that is None.

    Beside those of `spread`: `linear`, whether Delta is an affine map; `weight_...`: effective, numerical and stable
    rank of its matrix Delta W, and ||Delta W||_F / ||W0||_F; `jacobian_rank`: effective rank of E dDelta/dx over 256
    tokens, seen in the 64 leading directions of Delta (Delta W itself where it is linear); `change_at_2x` and
    `change_at_minus_x`: ||Delta(2x) - Delta(x)|| / ||Delta(x)|| and the same for -x: 1 and 2 for a linear map, 0 and 0
    where neither norm nor sign of the input counts.
    """
    y = base(x)
    delta = adapted(x).double() - y.double()
    figures: dict[str, Any] = {**spread(x, delta, y), **dict.fromkeys((*LOCAL, *WEIGHT)), "linear": None}
    if figures["update_ratio"] is None:
        why = NO_UPDATE if delta.isfinite().all() else NOT_FINITE
        return {**figures, "null_reasons": dict.fromkeys((*SPREAD, *LOCAL, *WEIGHT), why)}
    figures |= _norm_and_sign(base, adapted, x[:_N_LOCAL])
    figures |= _weight(base, adapted, x, delta, y)
    if not figures["linear"]:
        figures["jacobian_rank"] = mean_jacobian_rank(base, adapted, x[:_N_LOCAL], delta)
    return {**figures, "null_reasons": _reasons(figures)}


def _reasons(figures: dict[str, Any]) -> dict[str, str]:
    why = CONSTANT if figures["linear"] else NOT_LINEAR
    return {name: why for name in (*SPREAD, *LOCAL, *WEIGHT) if figures[name] is None}


def _norm_and_sign(base: Map, adapted: Map, x: Tensor) -> dict[str, float]:
    at, at_2x, at_minus = (adapted(z).double() - base(z).double() for z in (x, 2 * x, -x))
    return {
        "change_at_2x": ((at_2x - at).norm() / at.norm()).item(),
        "change_at_minus_x": ((at_minus - at).norm() / at.norm()).item(),
    }


def _weight(base: Map, adapted: Map, x: Tensor, delta: Tensor, y: Tensor) -> dict[str, Any]:
    """Figures of Delta W where Delta is affine on these inputs."""
    width = x.shape[1]
    probe = torch.cat([x.new_zeros(1, width), torch.eye(width, dtype=x.dtype, device=x.device)])
    before, after = base(probe).double(), adapted(probe).double()
    change = after - before
    offset, matrix = change[0], change[1:] - change[0]  # (d_out,), (d_in, d_out)
    missed = (x.double() @ matrix + offset - delta).norm()
    if not missed <= 1e-3 * delta.norm() + _noise(y):
        return {"linear": False}
    s = torch.linalg.svdvals(matrix)
    # what rounding of y alone may give: no singular value of it is larger
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
    """Effective rank of U' J, J = E dDelta/dx over the tokens x, U the 64 leading directions of Delta (n, d_out).

    Where Delta has no more directions than that, as QAA's has, nothing of J is left out.
    """
    variances, directions = torch.linalg.eigh(_covariance(centred(delta)))
    kept = directions[:, -min(_N_PROBES, max(1, numerical_rank(variances))) :]
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        sums = ((adapted(x) - base(x)) @ kept.to(x.dtype)).sum(0)  # (k,)
        rows = [torch.autograd.grad(one, x, retain_graph=True)[0].mean(0) for one in sums]
    return effective_rank(torch.linalg.svdvals(torch.stack(rows).double()))


def _variances(around: Tensor) -> Tensor:
    """Eigenvalues of the covariance of centred rows (n, d), from the smaller of its two forms."""
    smaller = around if around.shape[0] >= around.shape[1] else around.T
    return torch.linalg.eigvalsh(_covariance(smaller)).clamp(min=0)


def _covariance(around: Tensor) -> Tensor:
    return around.T @ around / len(around)


def _noise(y: Tensor) -> Tensor:
    return _ROUNDING * torch.finfo(y.dtype).eps * y.double().norm()
