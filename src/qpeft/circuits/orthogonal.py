"""Orthonormal columns of any width from few angles: Quantum-PEFT's circuit, and constructions from
several of them.

A power of two is one `two_design` circuit. Other widths N have two constructions. `pad` is a larger
circuit cut to size: X = the first N rows of the circuit's columns, made orthonormal again by U = X
R^-1 with X^T X = R^T R (Cholesky). `qsd` is the cosine-sine (quantum Shannon) recursion. With N1 =
2^floor(log2 N), the leading block, and N2 = N - N1

    U = (U1 (+) U2) CS(phi) (V1 (+) V2)

U1 and V1 are circuits; U2 and V2 are built by the same recursion on N2. CS rotates row j of the top
block against row j of the bottom block by phi_j / 2, j < N2, with phi_j = c_0 + sum_b bit(j, b)
c_{1+b}. The columns start in the top block, so V2 would multiply zeros at the top level, which
omits it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz, Gate, two_design_pairs
from qpeft.circuits.numerics import cached_tables, check_tensor
from qpeft.circuits.simulate import Program, compile_gates, compiled, evolve
from qpeft.errors import CircuitError, ConfigError

CONSTRUCTIONS = ("auto", "qsd", "pad")
MAX_CONDITION = 1e6

Signs = Callable[[int], Tensor]


def two_design_columns(
    angles: Tensor, n_qubits: int, n_layers: int, columns: Sequence[int] | Tensor
) -> Tensor:
    """`orthogonal_columns` (2**N, K) or (M, 2**N, K) of the `two_design` circuit on N = `n_qubits`:
    equation (QP-2).

    `angles` are (P,) or (M, P), P = (2L+1) N - 2L with L = `n_layers`, in the order in which they
    act; a shift by 2 pi negates every column. `columns` are K basis indices. Raises as
    `orthogonal_columns`.
    """
    return orthogonal_columns(angles, 2**n_qubits, n_layers, columns)


_States = Tensor | tuple[int, ...]
_Job = tuple[
    Tensor, int, _States
]  # M matrices: angles (M, P), the width N, and K basis states or states (M, K, N)


def orthogonal_columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    construction: str = "auto",
    signs: Signs | None = None,
) -> Tensor:
    """K orthonormal columns of `width` rows, for every value of the angles.

    `angles` (P,) or (M, P), float32 or float64, P = `count_orthogonal(width, n_layers,
    construction)`; `columns` are K basis indices on ceil(log2 N) wires for `pad`, on floor(log2 N)
    wires otherwise. Returns (N, K) or (M, N, K) in the angles' dtype and on their device. A power
    of two is one circuit: equation (QP-2), wire 0 the most significant bit. Other widths: `qsd` is
    the cosine-sine recursion, `pad` a larger circuit cut to size, `auto` is `qsd` for two or three
    set bits of the width and `pad` for more.

    `signs`: n_qubits -> (2L, 2**n_qubits) of +-1, which replace the CZ gates of step a, step b of
    the first layer, step a of the second, ... in every circuit: random signs, or ones, are
    classical controls.

    Raises ConfigError for unusable arguments, CircuitError if `pad` finds nearly dependent columns.
    """
    batch = angles if angles.ndim == 2 else angles[None]
    result = orthogonal_batches([(batch, width, columns)], n_layers, construction, signs)[0]
    return result if angles.ndim == 2 else result[0]


def orthogonal_batches(
    batches: Sequence[tuple[Tensor, int, Sequence[int] | Tensor]],
    n_layers: int,
    construction: str = "auto",
    signs: Signs | None = None,
) -> list[Tensor]:
    """`orthogonal_columns` (M, N, K) of several angles (M, P), widths N and basis indices.

    The circuits of equal numbers of qubits run in one batch.
    """
    jobs: list[_Job] = []
    for angles, width, columns in batches:
        n_angles = count_orthogonal(width, n_layers, construction)
        check_tensor(angles, (n_angles,), f"a matrix of width {width} with {n_layers} layers")
        check_rank(len(columns), width, construction)
        n_qubits, is_cut = (
            column_qubits(width, construction),
            resolve_construction(width, construction) == "pad",
        )
        indices = tuple(map(int, columns))
        if not indices or not 0 <= min(indices) <= max(indices) < 2**n_qubits:
            raise ConfigError(
                f"columns must be one or more indices from 0 to {2**n_qubits - 1}, got"
                f" {list(indices)}"
            )
        jobs.append((angles, 2**n_qubits if is_cut else width, indices))
    found = _together([_rows(*job, n_layers) for job in jobs], n_layers, signs)
    widths = [width for _, width, _ in batches]
    return [
        (x if x.shape[2] == n else _cut_to_size(x, n)).mT
        for x, n in zip(found, widths, strict=True)
    ]


_Rows = Generator[_Job, Tensor, Tensor]


def _rows(angles: Tensor, width: int, states: _States, n_layers: int) -> _Rows:
    """The columns (M, K, N) by the recursion, which yields each circuit on a power of two and is
    sent its states.

    Basis states are zero on the bottom block, and the angles then lack those of V2.
    """
    if width.bit_count() == 1:
        return (yield angles, width, states)
    n1, n2 = _blocks(width)
    above, below = (
        (states[..., :n1], states[..., n1:]) if isinstance(states, Tensor) else (states, None)
    )
    v1, *v2, c, u1, u2 = angles.split(
        _part_sizes(width, n_layers, with_v2=below is not None), dim=1
    )
    with torch.autocast(c.device.type, enabled=False):
        half = (c @ _half_bits(n2, c.dtype, c.device))[:, None]  # phi / 2, (M, 1, N2)
    cos, sin = half.cos(), half.sin()
    head, tail = (yield v1, n1, above).split([n2, n1 - n2], dim=2)
    top, bottom = cos * head, sin * head
    if below is not None:
        below = yield from _rows(v2[0], n2, below, n_layers)
        top, bottom = top - sin * below, bottom + cos * below
    upper = yield u1, n1, torch.cat([top, tail], dim=2)
    lower = yield from _rows(u2, n2, bottom, n_layers)
    return torch.cat([upper, lower], dim=2)


def _together(recursions: Sequence[_Rows], n_layers: int, signs: Signs | None) -> list[Tensor]:
    """The results of all recursions. Of their next circuits, those of equal widths and K run in one
    batch.
    """
    jobs, found = {rows: next(rows) for rows in recursions}, dict[_Rows, Tensor]()
    while jobs:
        alike: dict[Any, dict[_Rows, _Job]] = defaultdict(dict)
        for rows, (angles, width, states) in jobs.items():
            alike[width, states if isinstance(states, tuple) else states.shape[1]][rows] = (
                angles,
                width,
                states,
            )
        for (width, start), batch in alike.items():
            angles, _, states = zip(*batch.values(), strict=True)
            start = start if isinstance(start, tuple) else torch.cat(states)
            ended = _circuits(torch.cat(angles), width, start, n_layers, signs)
            for rows, part in zip(batch, ended.split([len(part) for part in angles]), strict=True):
                try:
                    jobs[rows] = rows.send(part)
                except StopIteration as done:
                    found[rows] = done.value
                    del jobs[rows]
    return [found[rows] for rows in recursions]


def _circuits(
    angles: Tensor, width: int, states: _States, n_layers: int, signs: Signs | None
) -> Tensor:
    """The final states (M, K, N) of circuits whose width is a power of two."""
    if width == 1:  # no angles
        return states if isinstance(states, Tensor) else angles.new_ones(len(angles), 1, 1)
    n_qubits = width.bit_length() - 1
    pattern = None if signs is None else (signs(n_qubits) > 0).cpu().numpy().tobytes()
    return evolve(
        angles, _program(n_qubits, n_layers, pattern, angles.dtype, angles.device), states
    )


@cached_tables
def _program(
    n_qubits: int, n_layers: int, pattern: bytes | None, dtype: torch.dtype, device: torch.device
) -> Program:
    """`pattern`: whether each of the signs that replace the CZs is positive."""
    ansatz = Ansatz("two_design", n_qubits, n_layers)
    if pattern is None:
        return compiled(ansatz, dtype, device)
    turns = (gate for gate in ansatz.gates() if gate.name == "ry")
    gates: list[Gate | Tensor] = [*islice(turns, n_qubits)]
    for step, row in enumerate(
        torch.frombuffer(bytearray(pattern), dtype=torch.bool).view(2 * n_layers, -1)
    ):
        gates += [2.0 * row - 1, *islice(turns, 2 * len(two_design_pairs(n_qubits, step % 2)))]
    return compile_gates(gates, n_qubits, ansatz.angle_shape, dtype, device)


@cached_tables
def _half_bits(n2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Halves of: row 0 is one, row 1 + b is bit b of the column's number. (1 + ceil(log2 N2), N2)"""
    place = torch.arange((n2 - 1).bit_length())[:, None]
    bits = (torch.arange(n2) >> place) & 1
    return torch.cat([torch.ones(1, n2), bits]).to(device, dtype) / 2


def _cut_to_size(rows: Tensor, width: int) -> Tensor:
    """(M, K, 2**q) -> (M, K, N). Raises CircuitError if the cut columns are linearly dependent or
    nearly so.
    """
    cut = rows[..., :width]
    # in float32 wide columns would be orthonormal to 1e-4 only, and accelerators may have no float64
    exact = cut.cpu().double()
    gram = exact @ exact.mT  # (M, K, K)
    factor, failed = torch.linalg.cholesky_ex(gram)
    values = torch.linalg.eigvalsh(gram.detach())  # ascending
    condition = (
        (values[:, -1] / values[:, 0].clamp(min=0))
        .nan_to_num(nan=math.inf, posinf=math.inf)
        .max()
        .item()
    )
    if failed.any() or condition > MAX_CONDITION:
        raise CircuitError(
            f"pad construction for width {width} is nearly rank deficient (condition"
            f" {condition:.1e}); redraw the angles or use construction='qsd'"
        )
    return torch.linalg.solve_triangular(factor, exact, upper=False).to(cut)


@cache
def basis_columns(kind: str, n_qubits: int, k: int) -> tuple[int, ...]:
    """k distinct basis indices of the `kind` first or spread.

    `first` is 0, ..., k-1. `spread` repeats the b = max(2, ceil(log2 k)) low bits of each column's
    number over all wires, from the least significant on, so that every wire takes both of its
    states:

        index(j) = sum_i bit(j, i mod b) * 2**i

    Raises ConfigError for k outside 1 .. 2**n_qubits.
    """
    if not 1 <= k <= 2**n_qubits:
        raise ConfigError(
            f"a circuit on {n_qubits} qubits has {2**n_qubits} columns; choose 1 to {2**n_qubits}"
            f" of them, got {k}"
        )
    repeated = n_qubits if kind == "first" else max(2, (k - 1).bit_length())
    return tuple(
        sum((number >> wire % repeated & 1) << wire for wire in range(n_qubits))
        for number in range(k)
    )


def count_orthogonal(width: int, n_layers: int, construction: str = "auto") -> int:
    """Number of angles of the columns with `width` rows, for example 127 for 768 rows and 2 layers.

    `n_layers` and `construction` are those of `orthogonal_columns`. Raises ConfigError as
    `resolve_construction`.
    """
    if resolve_construction(width, construction) == "qsd":
        return sum(_part_sizes(width, n_layers, with_v2=False))
    n_qubits = column_qubits(width, construction)
    return (
        Ansatz("two_design", n_qubits, n_layers).n_angles if n_qubits else 0
    )  # the 1 x 1 matrix [1]


def resolve_construction(width: int, construction: str) -> str:
    """The construction used at `width`: "circuit" (a power of two), "qsd" or "pad".

    Raises ConfigError for an unknown name and a width below 1.
    """
    if construction not in CONSTRUCTIONS:
        raise ConfigError(
            f"unknown construction '{construction}'; choose one of {', '.join(CONSTRUCTIONS)}"
        )
    if width < 1:
        raise ConfigError(f"width must be at least 1, got {width}")
    if width.bit_count() == 1:
        return "circuit"
    if construction == "auto":
        return "qsd" if width.bit_count() <= 3 else "pad"
    return construction


def column_qubits(width: int, construction: str = "auto") -> int:
    """Wires on which the columns are chosen: ceil(log2 N) for `pad`, otherwise those of the leading
    block.
    """
    padded = resolve_construction(width, construction) == "pad"
    return (width - 1).bit_length() if padded else width.bit_length() - 1


def check_rank(k: int, width: int, construction: str) -> None:
    """Raise ConfigError if the width or its leading block cannot hold k columns."""
    n1 = _blocks(width)[0]
    if resolve_construction(width, construction) == "qsd" and k > n1:
        raise ConfigError(
            f"r={k} exceeds the leading block {n1} of width {width}; use construction='pad'"
        )
    if k > width:
        raise ConfigError(f"{width} rows hold at most {width} orthonormal columns, got {k}")


def _blocks(width: int) -> tuple[int, int]:
    """N1, the largest power of two that is at most `width`, and N2, the rest."""
    n1 = 1 << (width.bit_length() - 1)
    return n1, width - n1


def _part_sizes(width: int, n_layers: int, with_v2: bool) -> list[int]:
    """Numbers of angles of V1, V2 (optional), c, U1 and U2, in the order in which they are stored."""
    n1, n2 = _blocks(width)
    block = count_orthogonal(n1, n_layers)
    rest = (
        count_orthogonal(n2, n_layers)
        if n2.bit_count() == 1
        else sum(_part_sizes(n2, n_layers, with_v2=True))
    )
    return [block, *([rest] * with_v2), 1 + (n2 - 1).bit_length(), block, rest]
