"""The simulator of every circuit: exact states, batched over circuits and over blocks of initial
states.

The wires are divided into groups of at most five. A circuit is compiled to S stages, and in each
stage

    psi -> boundary (K_1 (x) ... (x) K_G) psi

K_g collects all gates inside group g, and the boundary the CNOT and CZ gates behind them, from the
first one between two groups on: a permutation of the amplitudes with signs.

K_g is a product of steps. In a step every wire has at most one rotation exp(-i t P / 2). With the
projectors E_s = (x) (I + s_w P_w) / 2 for signs s = (s_1, ..., s_k), and phi_s = sum_w s_w t_w / 2,
a step is

    sum_s exp(-i phi_s) E_s = sum_{s: s_1 = 1} cos(phi_s) (E_s + E_-s) + sin(phi_s) (E_s - E_-s) / i

so a table of 2**k matrices turns the features (cos phi, sin phi) into the matrices of all steps of
all circuits in one product. The gates on two wires behind a step's rotations are part of its table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from itertools import product
from math import pi, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz, Gate, definition
from qpeft.circuits.numerics import cached_tables, check_tensor, refuse_second_derivative

_GROUP = (
    5  # wires at most: larger matrices do more work, smaller ones need more products (measured)
)
_TABLES = 2**26  # numbers of all tables of a circuit, about
_KEPT = 2**12  # amplitudes of a circuit at most whose states are all kept for the gradient
_AT_ONCE = 2**20  # amplitudes of a batch of circuits

_PAULIS = {
    "rx": torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128),
    "ry": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
    "rz": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
}


class Boundary(NamedTuple):
    """`new = signs * old[source]`, and so `old = (signs * new)[target]`; None: no permutation, no
    signs.
    """

    source: Tensor | None  # (2**N,)
    target: Tensor | None
    signs: Tensor | None  # (2**N, 1)

    # `block` has the 2**N amplitudes on axis 1 or 2; index_select is slow on the last of three axes
    def cross(self, axis: int, block: Tensor) -> Tensor:
        if self.source is not None:
            block = block.flatten(0, axis - 1).index_select(1, self.source).view_as(block)
        return block if self.signs is None else block * (self.signs if axis == 1 else self.signs.mT)

    def cross_back(self, axis: int, block: Tensor) -> Tensor:
        block = (
            block if self.signs is None else block * (self.signs if axis == 1 else self.signs.mT)
        )
        return (
            block
            if self.target is None
            else block.flatten(0, axis - 1).index_select(1, self.target).view_as(block)
        )


class Program(NamedTuple):
    """A compiled circuit: S stages of at most R steps on G groups of wires; a group is padded to k
    wires.
    """

    sizes: tuple[int, ...]  # wires of each group
    # (R * S * G * k,) indices into the flat angles followed by a zero, for wires without a rotation
    slots: Tensor
    # (R * S * G or 1, 2**k, k) and (R * S * G or 1, 2**k, 1): the sine of phases @ angles + shifts
    phases: Tensor
    shifts: Tensor  # is cos(phi_s) for every s, then sin(phi_s)
    tables: Tensor  # (R * S * G or 1, 2**k, 4**k) of each step, complex numbers as two real ones
    steps: tuple[int, int, int]  # R, S, G
    boundaries: tuple[Boundary, ...]  # behind each stage
    is_complex: bool


def exact_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states of any ansatz started in `|0...0>`; wire 0 is the
    most significant bit.

    `angles` have shape `ansatz.angle_shape`, or `(M, *ansatz.angle_shape)` for the probabilities
    (M, 2**N) of M circuits; float32 or float64, radians. The result has their dtype and device, and
    a gradient.

    Raises ConfigError for angles of another shape or dtype, on the CPU for angles that are not
    finite, and for an ansatz of a user whose gates are not valid.
    """
    is_single = angles.shape == ansatz.angle_shape
    parts = (angles[None] if is_single else angles).split(max(1, _AT_ONCE >> ansatz.n_qubits))
    found = torch.cat([squared(circuit_states(ansatz, part)) for part in parts])
    return found[0] if is_single else found


def probabilities(angles: Tensor) -> Tensor:
    """`exact_probabilities` (2**N,) of QPA's default circuit `ry_ladder` with angles (L, N)
    in radians: equation (QPA-1).

    Raises as `exact_probabilities`.
    """
    return exact_probabilities(Ansatz("ry_ladder", angles.shape[-1], len(angles)), angles)


def circuit_states(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Final states (S, 2**N) from `|0...0>` at the angles `(S, *ansatz.angle_shape)`, in their
    dtype.

    The amplitudes are complex for circuits with RX or RZ. Raises as `exact_probabilities`.
    """
    samples = len(angles) if angles.ndim else 1
    check_tensor(angles, (samples, *ansatz.angle_shape), str(ansatz), batched=False)
    return evolve(angles.flatten(1), compiled(ansatz, angles.dtype, angles.device), (0,))[:, 0]


def squared(psi: Tensor) -> Tensor:
    return psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()


def evolve(angles: Tensor, program: Program, states: Tensor | tuple[int, ...]) -> Tensor:
    """Final states (M, K, 2**N) of M circuits with angles (M, P), from K basis states, or states (M
    or 1, K, 2**N).

    The result is complex for circuits with RX or RZ, and a view whose memory may have its last two
    axes exchanged. Differentiable.
    """
    with torch.autocast(
        angles.device.type, enabled=False
    ):  # which would round the state to bfloat16
        groups = group_matrices(angles, program)
        if isinstance(states, Tensor):
            return Stages.apply(
                states.to(groups[0].dtype).expand(len(angles), -1, -1), program.boundaries, *groups
            )
        # behind the first matrices, a basis state is a product of their columns
        digits = _digits(states, program.sizes, angles.device)
        columns = [
            group[0].index_select(2, digit) for group, digit in zip(groups, digits, strict=True)
        ]
        psi = reduce(
            lambda right, left: (left[:, :, None] * right[:, None]).flatten(1, 2), reversed(columns)
        )
        return Stages.apply(psi, program.boundaries, *(group[1:] for group in groups))


@cached_tables
def _digits(indices: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The index (K,) of each basis state in every group of wires."""
    return [
        digit.to(device)
        for digit in torch.unravel_index(torch.tensor(indices), [2**size for size in sizes])
    ]


def group_matrices(angles: Tensor, program: Program) -> list[Tensor]:
    """The matrices (S, M, d, d) of each group of d amplitudes, in all stages."""
    n_circuits, k = len(angles), max(program.sizes)
    turns = torch.cat([angles.mT, angles.new_zeros(1, n_circuits)]).index_select(0, program.slots)
    turns = turns.view(-1, k, n_circuits)
    phases, shifts, tables = (
        rows.expand(len(turns), -1, -1) for rows in (program.phases, program.shifts, program.tables)
    )
    features = torch.baddbmm(shifts.expand(-1, -1, n_circuits), phases, turns).sin()
    entries = torch.bmm(features.mT, tables)  # (rows, M, 4**k)
    if program.is_complex:
        entries = torch.view_as_complex(entries.unflatten(-1, (-1, 2)))
    steps = entries.view(*program.steps, n_circuits, 2**k, 2**k)
    padded = reduce(lambda before, after: after @ before, steps.unbind()).unbind(
        1
    )  # of each group (S, M, 2**k, 2**k)
    sizes = [2**size for size in program.sizes]
    return [
        part if size == 2**k else part[..., :size, :size]
        for part, size in zip(padded, sizes, strict=True)
    ]


class Stages(torch.autograd.Function):
    """psi (M, K, 2**N) through all stages, or psi (M, 2**N, K) behind the matrices of the first one
    through the rest.

    For the gradient all states of small circuits are kept; of large ones only the final states, and
    the stages undone. So that no axes are exchanged in memory, a stage takes its groups from the
    last axis, puts them first and ends as (M, 2**N, K); the next one takes them from the first
    axis, puts them last and ends as (M, K, 2**N).
    """

    @staticmethod
    def forward(ctx: Any, psi: Tensor, boundaries: Sequence[Boundary], *groups: Tensor) -> Tensor:
        first, kept = len(boundaries) - len(groups[0]), list[Tensor]()
        size = psi.shape[2 - first]
        for stage, boundary in enumerate(boundaries):
            axis = 1 + stage % 2  # of the amplitudes behind this stage
            for group in () if stage < first else reversed(groups) if axis == 1 else groups:
                before = _on_axis(3 - axis, psi, group.shape[-1])
                kept += [before] if size <= _KEPT else []
                psi = _moved(axis, before, group[stage - first])
            psi = boundary.cross(axis, _on_axis(axis, psi, size))
        ctx.boundaries, ctx.sizes = boundaries, (first, size, len(groups))
        ctx.save_for_backward(psi, *groups, *kept)
        return psi.mT if len(boundaries) % 2 else psi

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        (first, size, n_groups), (psi, *saved) = ctx.sizes, ctx.saved_tensors
        pairs, kept = (
            [(group, torch.empty_like(group)) for group in saved[:n_groups]],
            saved[n_groups:],
        )
        lam = grad.mT if len(ctx.boundaries) % 2 else grad
        with torch.autocast(grad.device.type, enabled=False):
            for stage, boundary in reversed(list(enumerate(ctx.boundaries))):
                axis = 1 + stage % 2
                lam = boundary.cross_back(axis, _on_axis(axis, lam, size))
                if stage < first:
                    break
                psi = psi if kept else boundary.cross_back(axis, _on_axis(axis, psi, size))
                for group, of_group in pairs if axis == 1 else reversed(pairs):
                    undo = group[stage - first].mH
                    of_after, after = (
                        _on_axis(axis, block, undo.shape[-1]) for block in (lam, psi)
                    )
                    psi, lam = (
                        kept.pop() if kept else _moved(3 - axis, after, undo),
                        _moved(3 - axis, of_after, undo),
                    )
                    of_after, before = (of_after, psi) if axis == 1 else (of_after.mT, psi.mT)
                    torch.bmm(of_after, before.conj(), out=of_group[stage - first])
        return _on_axis(2 - first, lam, size), None, *(of_group for _, of_group in pairs)


def _on_axis(axis: int, block: Tensor, d: int) -> Tensor:
    """The block with d amplitudes on axis 1 or 2, and everything else on the other one."""
    return block.reshape((len(block), d, -1) if axis == 1 else (len(block), -1, d))


def _moved(to: int, block: Tensor, matrix: Tensor) -> Tensor:
    """The matrices (M, d, d) times the d amplitudes of the block, which end on axis `to` and were
    on the other one.
    """
    return torch.bmm(matrix, block.mT) if to == 1 else torch.bmm(block.mT, matrix.mT)


# -- compilation


def compiled(ansatz: Ansatz, dtype: torch.dtype, device: torch.device) -> Program:
    """The program of an ansatz."""
    return _compiled(ansatz, definition(ansatz), dtype, device)


@cached_tables
def _compiled(ansatz: Ansatz, _: Any, dtype: torch.dtype, device: torch.device) -> Program:
    return compile_gates(ansatz.gates(), ansatz.n_qubits, ansatz.angle_shape, dtype, device)


def compile_gates(
    gates: Iterable[Gate | Tensor],
    n_qubits: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """The program of gates in the order in which they act; a tensor (2**N,) of +-1 is a diagonal
    gate on all wires.
    """
    gates = list(gates)
    # wires of each group, as equal as can be; few for a deep circuit, so that its tables are not
    # large
    most = next(k for k in range(_GROUP, 1, -1) if k == 2 or len(gates) * 8**k < _TABLES)
    n_groups = max(-(-n_qubits // most), 1 + (n_qubits >= _GROUP))
    sizes = tuple(n_qubits // n_groups + (group < n_qubits % n_groups) for group in range(n_groups))
    turns, pairs, behind = _collected(
        gates, [group for group, size in enumerate(sizes) for _ in range(size)]
    )
    n_steps = 1 + max((place[0] for place in (*turns, *pairs)), default=0)
    k, n_stages, n_angles = max(sizes), len(behind), prod(shape)
    index = {slot: i for i, slot in enumerate(product(*map(range, shape)))}
    slots = torch.full((n_steps, n_stages, len(sizes), k), n_angles)
    scales, shifts = (
        torch.ones(slots.shape, dtype=torch.float64),
        torch.zeros(slots.shape, dtype=torch.float64),
    )
    tables = []
    for place in product(range(n_steps), range(n_stages), range(len(sizes))):
        start = sum(sizes[: place[2] + 1]) - k  # missing wires of a small group are its first ones
        axes = ["ry"] * k
        for wire, gate in turns.get(place, {}).items():
            at = *place, wire - start
            axes[wire - start], scales[at], shifts[at] = gate.name, gate.scale, gate.shift
            slots[at] = n_angles if gate.slot is None else index[gate.slot]
        local = (
            gate._replace(wires=tuple(wire - start for wire in gate.wires))
            for gate in pairs.get(place, ())
        )
        tables.append(_table(tuple(axes), tuple(local)))
    is_complex = any(gate.name != "ry" for gates in turns.values() for gate in gates.values())
    stacked = torch.stack(tables)
    stacked = (torch.view_as_real(stacked) if is_complex else stacked.real).flatten(2)
    half = torch.tensor(_signs(k), dtype=torch.float64).repeat(2, 1) / 2  # (2**k, k)
    quarter = torch.tensor([pi / 2, 0.0], dtype=torch.float64).repeat_interleave(len(half) // 2)[
        :, None
    ]
    made = {
        gates: _boundary(gates, n_qubits, dtype, device) for gates in set(behind)
    }  # larger than the state
    by_row = (half * scales.view(-1, 1, k), half @ shifts.view(-1, k, 1) + quarter, stacked)
    phases, turned, table = (
        (rows[:1] if (rows == rows[0]).all() else rows).to(device, dtype) for rows in by_row
    )
    steps, boundaries = (n_steps, n_stages, len(sizes)), tuple(made[gates] for gates in behind)
    return Program(
        sizes, slots.flatten().to(device), phases, turned, table, steps, boundaries, is_complex
    )


_Place = tuple[int, int, int]  # step, stage and group


def _collected(
    gates: Iterable[Gate | Tensor], owner: list[int]
) -> tuple[
    dict[_Place, dict[int, Gate]], dict[_Place, list[Gate]], list[tuple[Gate | Tensor, ...]]
]:
    """The rotations by wire and the gates on two wires of every step, and the gates of every
    boundary.

    A gate on two wires of different groups ends the rotations of its stage.
    """
    turns: dict[_Place, dict[int, Gate]] = defaultdict(dict)
    pairs: dict[_Place, list[Gate]] = defaultdict(list)
    behind: list[tuple[Gate | Tensor, ...]] = [()]
    steps = dict.fromkeys(owner, 0)  # of each group in this stage
    for gate in gates:
        is_pair = isinstance(gate, Tensor) or len(gate.wires) == 2
        if isinstance(gate, Tensor) or (
            is_pair and (behind[-1] or len({owner[wire] for wire in gate.wires}) > 1)
        ):
            behind[-1] += (gate,)
            continue
        group = owner[gate.wires[0]]
        if not is_pair and behind[-1]:
            behind.append(())
            steps = dict.fromkeys(owner, 0)
        place = steps[group], len(behind) - 1, group
        if is_pair:
            pairs[place].append(gate)
            continue
        if place in pairs or gate.wires[0] in turns[place]:
            steps[group] += 1
        turns[steps[group], len(behind) - 1, group][gate.wires[0]] = gate
    return turns, pairs, behind


def _signs(k: int) -> Sequence[tuple[int, ...]]:
    """Every s with s_1 = 1."""
    return [*product((1, -1), repeat=k)][: 2 ** (k - 1)]


@lru_cache(maxsize=1024)
def _table(axes: tuple[str, ...], pairs: tuple[Gate, ...]) -> Tensor:
    """The matrices of the features of one step, (2**k, 4**k) complex."""
    source, signs = permutation(pairs, len(axes))
    eye = torch.eye(2, dtype=torch.complex128)
    even, odd = [], []
    for sign in _signs(len(axes)):
        here, there = (
            reduce(
                torch.kron,
                [(eye + way * s * _PAULIS[axis]) / 2 for s, axis in zip(sign, axes, strict=True)],
            )
            for way in (1, -1)
        )
        even.append(here + there)
        odd.append((here - there) / 1j)
    return (torch.stack(even + odd)[:, source] * signs[:, None]).flatten(1)


def _boundary(
    gates: Sequence[Gate | Tensor], n_qubits: int, dtype: torch.dtype, device: torch.device
) -> Boundary:
    source, signs = permutation(gates, n_qubits)
    is_moved = not torch.equal(source, torch.arange(len(source), dtype=source.dtype))
    is_signed = bool((signs != 1).any())
    return Boundary(
        source.to(device) if is_moved else None,
        source.argsort().to(device, source.dtype) if is_moved else None,
        signs[:, None].to(device, dtype) if is_signed else None,
    )


def permutation(gates: Sequence[Gate | Tensor], n_qubits: int) -> tuple[Tensor, Tensor]:
    """The index that each amplitude behind the gates had before them, and its sign, both (2**N,)."""
    source = index = torch.arange(2**n_qubits, dtype=torch.int32)
    signs = torch.ones(2**n_qubits)
    for gate in gates:
        if isinstance(gate, Tensor):
            signs = signs * gate.cpu()
            continue
        first, second = (index >> (n_qubits - 1 - wire) & 1 for wire in gate.wires)
        if gate.name == "cz":
            signs = signs * (1 - 2 * (first & second))
        else:  # cx: basis state j behind it was j with the target flipped where the control is 1
            before = index ^ (first << (n_qubits - 1 - gate.wires[1]))
            source, signs = source[before], signs[before]
    return source, signs
