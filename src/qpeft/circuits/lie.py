"""The first columns of an orthogonal matrix from a skew matrix of low rank (the Lie-algebra family).

B (N, K') is strictly lower triangular and A = [B, 0] - [B, 0]^T. With E the first K' columns of the identity,
X = [B, -E] and Y = [E, B] (both N x 2K') it is A = X Y^T, so a power series f(A) = I + A phi(A) is

    f(A) C = C + X phi(Y^T X) Y^T C

and nothing is ever N x N. phi(z) is (e^z - 1)/z for exp, 1/(1 - z/2) for cayley, sum_{p<=P} z^(p-1)/p! for taylor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.numerics import full_precision, has_nonfinite
from qpeft.errors import CircuitError, ConfigError, UnsupportedTypeError, setting

LIE_MAPS = ("exp", "cayley", "taylor")
MAX_ERROR = 1e-4  # of orthogonality, for the truncated series


def lie_columns(b: Tensor, k: int, lie_map: str = "exp", taylor_order: int = 18) -> Tensor:
    """The first k columns of exp(A), of cayley(A) = (I - A/2)^-1 (I + A/2), or of the series of exp cut after A^P.

    These are `lie_map` "exp", "cayley" and "taylor"; P is `taylor_order`.
    `b` (N, K') or (M, N, K'), float32 or float64; entries on and above the diagonal are ignored. Returns (N, k) or
    (M, N, k) in b's dtype; the 2K' x 2K' core is always computed in float64. `cayley` is orthogonal for every b,
    `exp` up to norms of A of about 1e5 (with errors of 2e-6), `taylor` only for a small norm of A.

    Raises ConfigError for invalid sizes and, on the CPU, for entries that are not finite, UnsupportedTypeError for
    another dtype, CircuitError for a series that is not orthogonal.
    """
    _check(b, k, lie_map)
    batch = (b if b.ndim == 3 else b[None]).tril(-1)
    if has_nonfinite(batch):
        raise ConfigError("the Lie parameters b contain NaN or Inf")
    columns, core = _columns(batch, k, lie_map, taylor_order)
    if lie_map == "taylor":
        _check_orthogonal(columns.detach(), core.detach(), taylor_order)
    return columns if b.ndim == 3 else columns[0]


def count_lie(width: int, lie_rank: int) -> int:
    """Number of free entries of B: N K' - K' (K'+1) / 2. Raises ConfigError unless 1 <= K' < N."""
    if lie_rank < 1:
        raise ConfigError(f"{setting('lie_rank')} must be a positive integer, got {lie_rank}")
    if lie_rank >= width:
        raise ConfigError(f"{setting('lie_rank')}={lie_rank} must be smaller than the width {width}")
    return width * lie_rank - lie_rank * (lie_rank + 1) // 2


def lie_matrix(packed: Tensor, width: int, lie_rank: int) -> Tensor:
    """B (..., N, K') from its free entries (..., n), stored column by column, rows downwards."""
    n = count_lie(width, lie_rank)
    if packed.shape[-1] != n:
        raise ConfigError(f"width {width} and lie_rank {lie_rank} need {n} entries, got {packed.shape[-1]}")
    column, row = torch.triu_indices(lie_rank, width, 1, device=packed.device)
    flat = packed.new_zeros(*packed.shape[:-1], lie_rank * width)
    return flat.index_copy(-1, column * width + row, packed).unflatten(-1, (lie_rank, width)).mT


@full_precision
def _columns(b: Tensor, k: int, lie_map: str, taylor_order: int) -> tuple[Tensor, Tensor]:
    """The columns (M, N, k) and the core Y^T X (M, 2K', 2K')."""
    rank = b.shape[-1]
    b64 = b.double()
    eye = torch.eye(k, dtype=b64.dtype, device=b.device).expand(len(b), -1, -1)
    head = b64[:, :rank]  # E^T B
    core = torch.cat([torch.cat([head, -eye[:, :rank, :rank]], 2), torch.cat([b64.mT @ b64, -head.mT], 2)], 1)
    small = _PHI[lie_map](core, torch.cat([eye[:, :rank], b64[:, :k].mT], 1), taylor_order).to(b)  # (M, 2K', k)
    identity = torch.eye(b.shape[1], k, dtype=b.dtype, device=b.device)
    lift = torch.nn.functional.pad(small[:, rank:], (0, 0, 0, b.shape[1] - rank))  # E times the lower half
    return identity + b @ small[:, :rank] - lift, core


def _exp(core: Tensor, y: Tensor, _: int) -> Tensor:
    """phi(core) y: phi is the upper right block of exp [[core, I], [0, 0]], also where core is singular."""
    n = core.shape[-1]
    eye = torch.eye(n, dtype=core.dtype, device=core.device).expand_as(core)
    block = torch.nn.functional.pad(torch.cat([core, eye], 2), (0, 0, 0, n))
    return torch.linalg.matrix_exp(block)[:, :n, n:] @ y


def _cayley(core: Tensor, y: Tensor, _: int) -> Tensor:
    eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    return torch.linalg.solve(eye - core / 2, y)


def _taylor(core: Tensor, y: Tensor, order: int) -> Tensor:
    total = term = y
    for power in range(2, order + 1):
        term = core @ term / power
        total = total + term
    return total


_PHI = {"exp": _exp, "cayley": _cayley, "taylor": _taylor}


def _check(b: Tensor, k: int, lie_map: str) -> None:
    if lie_map not in LIE_MAPS:
        raise ConfigError(f"unknown {setting('lie_map')} '{lie_map}'; choose one of {', '.join(LIE_MAPS)}")
    if b.dtype not in (torch.float32, torch.float64):
        raise UnsupportedTypeError(f"b must be float32 or float64, got {b.dtype}")
    if b.ndim not in (2, 3):
        raise ConfigError(f"b must have shape (N, K') or (M, N, K'), got {tuple(b.shape)}")
    width, rank = b.shape[-2:]
    n = count_lie(width, rank)
    if rank > k:
        dead = n - (width * k - k * (k + 1) // 2)
        raise ConfigError(
            f"{setting('lie_rank')}={rank} exceeds {setting('r')}={k}: {dead} of {n} parameters would have no effect"
        )
    if k > width:
        raise ConfigError(f"{width} rows hold at most {width} orthonormal columns, got {k}")


def _check_orthogonal(columns: Tensor, core: Tensor, order: int) -> None:
    u = columns.double()
    error = (u.mT @ u - torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)).abs().amax((1, 2))
    worst = int(error.argmax())  # NaN counts as the largest
    if not error[worst] <= MAX_ERROR:
        norm = torch.linalg.eigvals(core[worst]).abs().max().item()  # A is skew and shares its eigenvalues
        raise CircuitError(
            f"Taylor order {order} leaves orthogonality error {error[worst].item():.1e} at norm {norm:.2f}; "
            "use lie_map='exp'"
        )
