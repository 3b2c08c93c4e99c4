"""The first columns of an orthogonal matrix from a skew matrix of low rank (the Lie-algebra
family).

B (N, K') is strictly lower triangular and A = [B, 0] - [B, 0]^T. With E the first K' columns of the
identity, X = [B, -E] and Y = [E, B] (both N x 2K') it is A = X Y^T, so a power series f(A) = I + A
phi(A) is

    f(A) C = C + X phi(Y^T X) Y^T C

and nothing is ever N x N. phi(z) is (e^z - 1)/z for exp, 1/(1 - z/2) for cayley.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from qpeft.circuits.numerics import check_tensor
from qpeft.errors import ConfigError


def lie_columns(b: Tensor, k: int, lie_map: str = "exp") -> Tensor:
    """The first k columns of exp(A), or of cayley(A) = (I - A/2)^-1 (I + A/2): `lie_map` "exp" or
    "cayley".

    `b` (N, K') or (M, N, K'), float32 or float64; entries on and above the diagonal are ignored.
    Returns (N, k) or (M, N, k) in b's dtype; the 2K' x 2K' core is always computed in float64 on the
    CPU.
    `cayley` is orthogonal for every b, `exp` up to norms of A of about 1e5 (with errors of 2e-6).

    Raises:
        ConfigError: invalid sizes, an unknown map, another dtype and, on the CPU, entries that are
            not finite.
    """
    if lie_map not in _PHI:
        raise ConfigError(f"unknown lie_map '{lie_map}'; choose one of {', '.join(_PHI)}")
    if b.ndim not in (2, 3):
        raise ConfigError(f"b must have shape (N, K') or (M, N, K'), got {tuple(b.shape)}")
    width, rank = b.shape[-2:]
    batch = (b if b.ndim == 3 else b[None]).tril(-1)
    check_tensor(batch, (width, rank), "lie_columns")
    count_lie(width, rank)
    if k > width:
        raise ConfigError(f"{width} rows hold at most {width} orthonormal columns, got {k}")
    if rank > k:
        raise ConfigError(f"lie_rank={rank} exceeds r={k}: columns would have no effect")
    with torch.autocast(b.device.type, enabled=False):
        b64 = batch.cpu().double()
        eye = torch.eye(k, dtype=b64.dtype).expand(len(b64), -1, -1)
        # Y^T X, from X = [B, -E] and Y = [E, B]
        head = b64[:, :rank]  # E^T B, (M, K', K')
        upper = torch.cat([head, -eye[:, :rank, :rank]], 2)  # E^T X
        lower = torch.cat([b64.mT @ b64, -head.mT], 2)  # B^T X
        core = torch.cat([upper, lower], 1)  # (M, 2K', 2K')
        # Y^T C, for the first k columns C of the identity
        right = torch.cat([eye[:, :rank], b64[:, :k].mT], 1)  # (M, 2K', k)
        small = _PHI[lie_map](core, right).to(b)  # (M, 2K', k)
        # C + X small
        identity = torch.eye(width, k, dtype=b.dtype, device=b.device)
        lift = pad(small[:, rank:], (0, 0, 0, width - rank))  # E times the lower half
        columns = identity + batch @ small[:, :rank] - lift  # (M, N, k)
    return columns if b.ndim == 3 else columns[0]


def count_lie(width: int, lie_rank: int) -> int:
    """Number of free entries of B: N K' - K' (K'+1) / 2. Raises ConfigError unless 1 <= K' < N."""
    if not 1 <= lie_rank < width:
        raise ConfigError(
            f"lie_rank must be from 1 to {width - 1} for width {width}, got {lie_rank}"
        )
    return width * lie_rank - lie_rank * (lie_rank + 1) // 2


def lie_matrix(packed: Tensor, width: int, lie_rank: int) -> Tensor:
    """B (..., N, K') from its free entries (..., n), stored column by column, rows downwards."""
    column, row = torch.triu_indices(lie_rank, width, 1, device=packed.device)
    zeros = packed.new_zeros(*packed.shape[:-1], lie_rank * width)
    flat = zeros.index_copy(-1, column * width + row, packed)
    return flat.unflatten(-1, (lie_rank, width)).mT


def _exp(core: Tensor, y: Tensor) -> Tensor:
    """phi(core) y: phi is the upper right block of exp [[core, I], [0, 0]], also where core is
    singular.
    """
    n = core.shape[-1]
    eye = torch.eye(n, dtype=core.dtype, device=core.device).expand_as(core)
    block = pad(torch.cat([core, eye], 2), (0, 0, 0, n))  # (M, 2n, 2n)
    return torch.linalg.matrix_exp(block)[:, :n, n:] @ y


def _cayley(core: Tensor, y: Tensor) -> Tensor:
    """phi(core) y = (I - core / 2)^-1 y."""
    eye = torch.eye(core.shape[-1]).to(core)
    return torch.linalg.solve(eye - core / 2, y)


_PHI = {"exp": _exp, "cayley": _cayley}
