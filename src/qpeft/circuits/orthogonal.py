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
from typing import Any, NamedTuple

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

    `angles` are radians, float32 or float64, (P,) or (M, P), P = (2L+1) N - 2L with L = `n_layers`,
    in the order in which they act; a shift by 2 pi negates every column. `columns` are K basis
    indices. The result has the angles' dtype. Raises as `orthogonal_columns`.
    """
    return orthogonal_columns(angles, 2**n_qubits, n_layers, columns)


class _Circuits(NamedTuple):
    """M circuits on a power of two, and what they start from."""

    angles: Tensor  # (M, P)
    width: int  # N
    states: Tensor | tuple[int, ...]  # (M, K, N), or the indices of K basis states


def orthogonal_columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    construction: str = "auto",
    signs: Signs | None = None,
) -> Tensor:
    """K orthonormal columns of `width` rows, for every value of the angles.

    `angles` (P,) or (M, P), radians, float32 or float64, P = `count_orthogonal(width, n_layers,
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

    Equal widths with equal indices are one batch, and circuits of equal numbers of qubits run in
    one.
    """
    alike: dict[tuple[int, tuple[int, ...]], list[Tensor]] = defaultdict(list)  # angles (M, P)
    keys = []  # of each batch in `alike`: the width that is built, and the indices
    for angles, width, columns in batches:
        n_angles = count_orthogonal(width, n_layers, construction)
        check_tensor(angles, (n_angles,), f"a matrix of width {width} with {n_layers} layers")
        check_rank(len(columns), width, construction)
        n_qubits = column_qubits(width, construction)
        is_cut = resolve_construction(width, construction) == "pad"
        indices = tuple(map(int, columns))
        if not indices or not 0 <= min(indices) <= max(indices) < 2**n_qubits:
            raise ConfigError(
                f"columns must be one or more indices from 0 to {2**n_qubits - 1}, got"
                f" {list(indices)}"
            )
        keys.append((2**n_qubits if is_cut else width, indices))
        alike[keys[-1]].append(angles)
    recursions = {
        key: _Recursion(_columns(_joined(parts), *key, n_layers)) for key, parts in alike.items()
    }
    _run_together([*recursions.values()], n_layers, signs)
    ended = {
        key: iter(recursion.result.split([len(angles) for angles in alike[key]]))
        for key, recursion in recursions.items()
    }
    results = []
    for key, (_, width, _) in zip(keys, batches, strict=True):
        rows = next(ended[key])  # (M, K, N), or wider if they are cut
        results.append((rows if rows.shape[2] == width else _cut_to_size(rows, width)).mT)
    return results


_Steps = Generator[_Circuits, Tensor, Tensor]


def _columns(angles: Tensor, width: int, states: Tensor | tuple[int, ...], n_layers: int) -> _Steps:
    """The columns (M, K, N) of U CS V on `states`, at angles (M, P).

    A generator: it yields the circuits that it needs next, and is sent their final states (M, K,
    N'). For N = 768 it yields three times, and `_run_together` runs what several recursions ask for
    at the same time in one batch:

        above (512) --- V1 --- head (256) ---.  CS  .--- top (256), tail (256) --- U1 --- rows 0..511
                           \\- tail (256)     |      |
        below (256) --- V2 ------------------'      '--- bottom (256) ----------- U2 --- rows 512..767

    Basis states are 0 in the bottom block: then there is no `below`, and the angles lack V2's.
    """
    if width.bit_count() == 1:
        return (yield _Circuits(angles, width, states))
    n1, n2 = _blocks(width)
    if isinstance(states, Tensor):
        above, below = states.split([n1, n2], dim=2)  # (M, K, N1), (M, K, N2)
    else:
        above = states
        below = None
    sizes = _part_sizes(width, n_layers, with_v2=below is not None)
    v1, *v2, c, u1, u2 = angles.split(sizes, dim=1)
    with torch.autocast(c.device.type, enabled=False):
        half = (c @ _half_bits(n2, c.dtype, c.device))[:, None]  # phi / 2, (M, 1, N2)
    cos = half.cos()
    sin = half.sin()

    turned = yield _Circuits(v1, n1, above)  # (M, K, N1)
    head, tail = turned.split([n2, n1 - n2], dim=2)
    top = cos * head  # (M, K, N2)
    bottom = sin * head
    if below is not None:
        below = yield from _columns(v2[0], n2, below, n_layers)
        top, bottom = top - sin * below, bottom + cos * below
    upper = yield _Circuits(u1, n1, torch.cat([top, tail], dim=2))
    lower = yield from _columns(u2, n2, bottom, n_layers)
    return torch.cat([upper, lower], dim=2)


class _Recursion:
    """A recursion that stops at each of its circuits until their final states are known."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps
        self.next: _Circuits | None = next(steps)  # None: it has ended
        self.result: Tensor  # (M, K, N)

    def resume(self, states: Tensor) -> None:
        try:
            self.next = self._steps.send(states)
        except StopIteration as end:  # as Python returns the value of a generator
            self.next, self.result = None, end.value


def _run_together(recursions: Sequence[_Recursion], n_layers: int, signs: Signs | None) -> None:
    """Run the recursions to their ends, circuits of equal widths and K in one batch.

    With widths 768 and 2304 = 2048 + 256 in two batches of three rounds:

        round 1: V1 of 768 (512), V1 of 2304 (2048)     two evaluations
        round 2: U1 of 768 (512), U1 of 2304 (2048)     two
        round 3: U2 of 768 and U2 of 2304 (256)         one, of both
    """
    while waiting := [(r, r.next) for r in recursions if r.next is not None]:
        alike: dict[Any, list[tuple[_Recursion, _Circuits]]] = defaultdict(list)
        for recursion, circuits in waiting:
            states = circuits.states
            n_columns = states.shape[1] if isinstance(states, Tensor) else None
            start = n_columns or states  # K, or which basis states
            alike[circuits.width, start].append((recursion, circuits))
        for (width, _), batch in alike.items():
            angles = _joined([circuits.angles for _, circuits in batch])  # (sum of M, P)
            blocks = [c.states for _, c in batch if isinstance(c.states, Tensor)]
            states = _joined(blocks) if blocks else batch[0][1].states  # (sum of M, K, N)
            ended = _evolved(_Circuits(angles, width, states), n_layers, signs)
            parts = ended.split([len(circuits.angles) for _, circuits in batch])
            for (recursion, _), part in zip(batch, parts, strict=True):
                recursion.resume(part)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _evolved(circuits: _Circuits, n_layers: int, signs: Signs | None) -> Tensor:
    """The final states (M, K, N) of circuits whose width is a power of two."""
    angles, width, states = circuits
    if width == 1:  # no angles
        return states if isinstance(states, Tensor) else angles.new_ones(len(angles), 1, 1)
    n_qubits = width.bit_length() - 1
    pattern = None if signs is None else (signs(n_qubits) > 0).cpu().numpy().tobytes()
    program = _program(n_qubits, n_layers, pattern, angles.dtype, angles.device)
    return evolve(angles, program, states)


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
    cut = rows[..., :width]  # (M, K, N)
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
    # the 1 x 1 matrix [1]
    return Ansatz("two_design", n_qubits, n_layers).n_angles if n_qubits else 0


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
