"""The simulator of every circuit: exact states, batched over circuits and over blocks of initial
states.

The wires are divided into groups of at most five. A circuit is compiled to S stages, and in each
stage

    psi -> entangler (K_1 (x) ... (x) K_G) psi

K_g collects all gates inside group g, and the entangler the CNOT and CZ gates behind them, from the
first one between two groups on: a permutation of the amplitudes with signs.

K_g is a product of steps. In a step every wire has at most one rotation exp(-i t P / 2). With the
projectors E_s = (x) (I + s_w P_w) / 2 for signs s = (s_1, ..., s_k), and phi_s = sum_w s_w t_w / 2,
a step is

    sum_s exp(-i phi_s) E_s = sum_{s: s_1 = 1} cos(phi_s) (E_s + E_-s) + sin(phi_s) (E_s - E_-s) / i

so a table of 2**k matrices turns the features (cos phi, sin phi) into the matrices of all steps of
all circuits in one product. The gates on two wires behind a step's rotations are part of its table.

Example: RY(a) on wire 0, RY(b) on wire 1, CNOT 0 -> 1 is one step of one group with k = 2. The signs
with s_1 = 1 are (1, 1) and (1, -1), so phi = ((a + b) / 2, (a - b) / 2). The features are the cosines
and sines of both, and the table has four matrices 4 x 4, whose rows the CNOT has permuted.

How to read this module: `compile_gates` makes a `Program` once for each circuit. At every
evaluation `group_matrices` turns angles into all K_g, and `Stages` multiplies them into the states.
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

from qpeft.circuits.ansatz import Ansatz, Gate
from qpeft.circuits.numerics import cached_tables, check_tensor, refuse_second_derivative

# wires of a group at most: larger matrices do more work, smaller ones need more products (measured)
_GROUP = 5
_TABLES = 2**26  # numbers of all tables of a circuit, about
_KEPT = 2**12  # amplitudes of a circuit at most whose states are all kept for the gradient
_AT_ONCE = 2**20  # amplitudes of a batch of circuits

_PAULIS = {
    "rx": torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128),
    "ry": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
    "rz": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
}


class Entangler(NamedTuple):
    """The gates on two wires behind a stage: `new = signs * old[source]`, and so `old = (signs *
    new)[target]`.

    Without a permutation `source` and `target` are None, without signs `signs` is.
    """

    source: Tensor | None  # (2**N,)
    target: Tensor | None  # (2**N,)
    signs: Tensor | None  # (2**N, 1)

    def apply(self, axis: int, block: Tensor) -> Tensor:
        """The block (M, 2**N, K) for axis 1, or (M, K, 2**N) for axis 2, behind the gates."""
        return self._signed(axis, _permuted(axis, block, self.source))

    def undo(self, axis: int, block: Tensor) -> Tensor:
        """The block before the gates, from that behind them."""
        return _permuted(axis, self._signed(axis, block), self.target)

    def _signed(self, axis: int, block: Tensor) -> Tensor:
        if self.signs is None:
            return block
        return block * (self.signs if axis == 1 else self.signs.mT)


def _permuted(axis: int, block: Tensor, source: Tensor | None) -> Tensor:
    if source is None:
        return block
    rows = block.flatten(0, axis - 1)  # index_select is slow on the last of three axes
    return rows.index_select(1, source).view_as(block)


class Program(NamedTuple):
    """A compiled circuit: S stages of at most R steps on G groups of wires.

    Every group is padded to k wires, the largest of `sizes`. A row is one step of one group, so
    there are R * S * G rows. Where all rows are equal, a table has a single one.
    """

    sizes: tuple[int, ...]  # wires of each group
    # (rows * k,) indices into the flat angles followed by a zero, for wires without a rotation
    angle_index: Tensor
    # sin(coefficients @ angles + shifts) are the features cos(phi_s) of every s, then sin(phi_s)
    coefficients: Tensor  # (rows or 1, 2**k, k): signs times scales, half of them
    shifts: Tensor  # (rows or 1, 2**k, 1), radians
    tables: Tensor  # (rows or 1, 2**k, 4**k), or 2 * 4**k real numbers of complex ones
    shape: tuple[int, int, int]  # R, S, G
    entanglers: tuple[Entangler, ...]  # behind each stage
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
    batch = angles[None] if is_single else angles
    parts = batch.split(max(1, _AT_ONCE >> ansatz.n_qubits))
    p = torch.cat([squared(circuit_states(ansatz, part)) for part in parts])  # (M, 2**N)
    return p[0] if is_single else p


def probabilities(angles: Tensor) -> Tensor:
    """`exact_probabilities` (2**N,) of QPA's default circuit `ry_ladder` with angles (L, N)
    in radians, float32 or float64: equation (QPA-1). The result has their dtype.

    Raises as `exact_probabilities`.
    """
    return exact_probabilities(Ansatz("ry_ladder", angles.shape[-1], len(angles)), angles)


def circuit_states(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Final states (M, 2**N) from `|0...0>` at the angles `(M, *ansatz.angle_shape)`, in their
    dtype.

    The amplitudes are complex for circuits with RX or RZ. Raises as `exact_probabilities`.
    """
    samples = len(angles) if angles.ndim else 1
    check_tensor(angles, (samples, *ansatz.angle_shape), str(ansatz), batched=False)
    return evolve(angles.flatten(1), compiled(ansatz, angles.dtype, angles.device), (0,))[:, 0]


def squared(psi: Tensor) -> Tensor:
    """`|psi|^2`, real, of the shape of psi."""
    return psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()


def evolve(angles: Tensor, program: Program, states: Tensor | tuple[int, ...]) -> Tensor:
    """Final states (M, K, 2**N) of M circuits with angles (M, P), from K basis states, or states (M
    or 1, K, 2**N).

    The result is complex for circuits with RX or RZ, and a view whose memory may have its last two
    axes exchanged. Differentiable.
    """
    # autocast would round the state to bfloat16
    with torch.autocast(angles.device.type, enabled=False):
        groups = group_matrices(angles, program)
        if isinstance(states, Tensor):
            psi = states.to(groups[0].dtype).expand(len(angles), -1, -1)  # (M, K, 2**N)
            return Stages.apply(psi, program.entanglers, *groups)
        # basis state j has one digit in every group: behind the first matrices it is the Kronecker
        # product of their columns with these digits
        digits = _digits(states, program.sizes, angles.device)
        columns = [
            group[0].index_select(2, digit)  # (M, d, K)
            for group, digit in zip(groups, digits, strict=True)
        ]
        # psi has shape (M, 2**N, K)
        psi = reduce(
            lambda right, left: (left[:, :, None] * right[:, None]).flatten(1, 2), reversed(columns)
        )
        return Stages.apply(psi, program.entanglers, *(group[1:] for group in groups))


@cached_tables
def _digits(indices: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The index (K,) of each basis state in every group of wires."""
    return [
        digit.to(device)
        for digit in torch.unravel_index(torch.tensor(indices), [2**size for size in sizes])
    ]


def group_matrices(angles: Tensor, program: Program) -> list[Tensor]:
    """The matrices (S, M, d, d) of each group of d amplitudes, in all stages, from angles (M, P)."""
    n_circuits = len(angles)
    k = max(program.sizes)
    # the angle of every wire in every step
    padded = torch.cat([angles.mT, angles.new_zeros(1, n_circuits)])  # (P + 1, M)
    wire_angles = padded.index_select(0, program.angle_index)  # (rows * k, M)
    wire_angles = wire_angles.view(-1, k, n_circuits)  # (rows, k, M)
    coefficients, shifts, tables = (
        of_rows.expand(len(wire_angles), -1, -1)
        for of_rows in (program.coefficients, program.shifts, program.tables)
    )
    # cos(phi) = sin(phi + pi / 2), so one sine gives both kinds of features
    # phi is (rows, 2**k, M)
    phi = torch.baddbmm(shifts.expand(-1, -1, n_circuits), coefficients, wire_angles)
    entries = torch.bmm(phi.sin().mT, tables)  # (rows, M, 4**k)
    if program.is_complex:
        entries = torch.view_as_complex(entries.unflatten(-1, (-1, 2)))
    steps = entries.view(*program.shape, n_circuits, 2**k, 2**k)  # (R, S, G, M, 2**k, 2**k)
    matrices = reduce(lambda before, after: after @ before, steps.unbind())
    # a smaller group is the block of its padded matrix in which the wires that it lacks are 0
    return [
        matrix[..., : 2**size, : 2**size]
        for matrix, size in zip(matrices.unbind(1), program.sizes, strict=True)
    ]


class Stages(torch.autograd.Function):
    """M circuits on K states each: psi (M, K, 2**N) through all stages, as (M, K, 2**N).

    `groups` are the matrices (S, M, d, d) of each group. Those of the first stage can have acted
    before: then they are left out (S - 1, M, d, d), and psi has shape (M, 2**N, K).

    No axes are exchanged in memory. A product takes the axis of its group from one end and puts its
    result at the other, in turn for all groups, and the next stage goes the other way. With two
    groups of a and b amplitudes, without the axis M:

        even stages    (K, a, b) -> (b, K, a) -> (a, b, K)    from the last axis to the first
        odd stages     (a, b, K) -> (b, K, a) -> (K, a, b)    from the first axis to the last

    The gradient of a matrix needs the state before its product. Small circuits keep all of them;
    large ones keep only the final state and undo the products, which are unitary. With lam, the
    gradient of the loss with respect to the state:

        before = matrix^H after,    lam_before = matrix^H lam_after,    d matrix = lam_after before^H
    """

    @staticmethod
    def forward(ctx: Any, psi: Tensor, entanglers: Sequence[Entangler], *groups: Tensor) -> Tensor:
        # stages whose matrices have acted before: 0 or 1
        n_acted = len(entanglers) - len(groups[0])
        # amplitudes are on axis 2 of psi if none has, and on axis 1 if one has
        size = psi.shape[2 - n_acted]  # 2**N
        kept = list[Tensor]()
        for stage, entangler in enumerate(entanglers):
            axis = 1 + stage % 2  # of the amplitudes behind this stage
            acting: Iterable[Tensor] = ()
            if stage >= n_acted:
                acting = reversed(groups) if axis == 1 else groups
            for group in acting:
                before = _on_axis(3 - axis, psi, group.shape[-1])
                if size <= _KEPT:
                    kept.append(before)
                psi = _moved(axis, before, group[stage - n_acted])
            psi = entangler.apply(axis, _on_axis(axis, psi, size))
        ctx.entanglers = entanglers
        ctx.sizes = n_acted, size, len(groups)
        ctx.save_for_backward(psi, *groups, *kept)
        return psi.mT if len(entanglers) % 2 else psi  # (M, K, 2**N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        n_acted, size, n_groups = ctx.sizes
        psi, *saved = ctx.saved_tensors
        groups = [(group, torch.empty_like(group)) for group in saved[:n_groups]]  # and gradients
        kept = saved[n_groups:]
        lam = grad.mT if len(ctx.entanglers) % 2 else grad
        with torch.autocast(grad.device.type, enabled=False):
            for stage, entangler in reversed(list(enumerate(ctx.entanglers))):
                axis = 1 + stage % 2
                lam = entangler.undo(axis, _on_axis(axis, lam, size))
                if stage < n_acted:
                    break
                if not kept:
                    psi = entangler.undo(axis, _on_axis(axis, psi, size))
                for group, of_group in groups if axis == 1 else reversed(groups):
                    undo = group[stage - n_acted].mH  # (M, d, d)
                    of_after = _on_axis(axis, lam, undo.shape[-1])
                    after = _on_axis(axis, psi, undo.shape[-1])
                    psi = kept.pop() if kept else _moved(3 - axis, after, undo)
                    lam = _moved(3 - axis, of_after, undo)
                    # (M, d, rest) times (M, rest, d)
                    left, right = (of_after, psi) if axis == 1 else (of_after.mT, psi.mT)
                    torch.bmm(left, right.conj(), out=of_group[stage - n_acted])
        return _on_axis(2 - n_acted, lam, size), None, *(of_group for _, of_group in groups)


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
    return _compiled(ansatz, ansatz.family, dtype, device)


@cached_tables
def _compiled(ansatz: Ansatz, _: Any, dtype: torch.dtype, device: torch.device) -> Program:
    return compile_gates(ansatz.gates(), ansatz.n_qubits, ansatz.angle_shape, dtype, device)


def compile_gates(
    gates: Iterable[Gate | Tensor],
    n_qubits: int,
    angle_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """The program of gates in the order in which they act.

    A gate is a rotation by an angle in radians, CNOT or CZ, or a tensor (2**N,) of +-1, a diagonal
    gate on all N wires. A slot of a gate is an index into angles of shape `angle_shape`. The numbers
    of the program have the dtype, float32 or float64, and are computed in float64 on the CPU.

    Example: RY(a) on wire 0, RY(b) on wire 1, CNOT 0 -> 1, RX(c) on wire 0, of two wires and so of
    one group, with k = 2. RX on wire 0 comes behind a gate on two wires, so it is a second step of
    the same stage. R = 2 steps, S = 1 stage and G = 1 group make two rows:

        row  angle_index  signs of phi      coefficients                           table, behind it
        0    0, 1         (1, 1), (1, -1)   (1/2, 1/2), (1/2, -1/2), twice         RY (x) RY, CNOT
        1    2, 3         (1, 1), (1, -1)   (1/2, 1/2), (1/2, -1/2), twice         RX (x) RY, nothing

    Index 3 is the zero behind the three angles: wire 1 turns by nothing in row 1. The shifts of the
    first two features of a row are pi / 2, which makes their sines cosines, and 0 of the others. The
    coefficients and shifts of both rows are equal, so the program has them once.
    """
    gates = list(gates)
    sizes = _group_sizes(n_qubits, len(gates))
    owner = [group for group, size in enumerate(sizes) for _ in range(size)]  # of each wire
    collected = _collected(gates, owner)
    rows = _rows(collected, sizes, angle_shape)
    n_steps, n_stages, n_groups, _ = rows.angle_index.shape
    coefficients, shifts = _features(rows.scales, rows.shifts)
    is_complex = any(
        gate.name != "ry" for by_wire in collected.rotations.values() for gate in by_wire.values()
    )
    tables = rows.tables  # (rows, 2**k, 4**k)
    tables = torch.view_as_real(tables).flatten(2) if is_complex else tables.real
    # equal entanglers are one object, because each is larger than the state
    made = {behind: _entangler(behind, n_qubits, dtype, device) for behind in set(collected.behind)}
    return Program(
        sizes,
        rows.angle_index.flatten().to(device),
        _once(coefficients).to(device, dtype),
        _once(shifts).to(device, dtype),
        _once(tables).to(device, dtype),
        (n_steps, n_stages, n_groups),
        tuple(made[behind] for behind in collected.behind),
        is_complex,
    )


class _Rows(NamedTuple):
    """What the wires of every step do: R steps in S stages of G groups of k wires."""

    angle_index: Tensor  # (R, S, G, k), int64: of the flat angles, or their number for no angle
    scales: Tensor  # (R, S, G, k), factors of the angles
    shifts: Tensor  # (R, S, G, k), radians
    tables: Tensor  # (R * S * G, 2**k, 4**k), complex: see `_table`


def _rows(collected: _Collected, sizes: tuple[int, ...], angle_shape: tuple[int, ...]) -> _Rows:
    """The rows of the program. A wire without a rotation has the scale 1, the shift 0 and no angle."""
    rotations, pairs, behind = collected
    k = max(sizes)
    n_steps = 1 + max((place.step for place in (*rotations, *pairs)), default=0)
    shape = n_steps, len(behind), len(sizes)
    index = {slot: i for i, slot in enumerate(product(*map(range, angle_shape)))}
    angle_index = torch.full((*shape, k), prod(angle_shape))
    scales = torch.ones(angle_index.shape, dtype=torch.float64)
    shifts = torch.zeros_like(scales)
    tables = []
    for place in map(_Place._make, product(*map(range, shape))):
        # a small group is padded by wires in front of its own
        start = sum(sizes[: place.group + 1]) - k
        axes = ["ry"] * k  # of wires without a rotation too: they turn by 0
        for wire, gate in rotations.get(place, {}).items():
            at = *place, wire - start
            axes[wire - start] = gate.name
            scales[at] = gate.scale
            shifts[at] = gate.shift
            if gate.slot is not None:
                angle_index[at] = index[gate.slot]
        local = [
            gate._replace(wires=tuple(wire - start for wire in gate.wires))
            for gate in pairs.get(place, ())
        ]
        tables.append(_table(tuple(axes), tuple(local)))
    return _Rows(angle_index, scales, shifts, torch.stack(tables))


def _features(scales: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients (rows, 2**k, k) and shifts (rows, 2**k, 1) of the features, in radians.

    phi_s = sum_w s_w (scale_w angle_w + shift_w) / 2, and pi / 2 more where it becomes a cosine.
    `scales` and `shifts` have shape (R, S, G, k).
    """
    k = scales.shape[-1]
    signs = torch.tensor(_signs(k), dtype=torch.float64)  # (2**(k-1), k)
    half = signs.repeat(2, 1) / 2  # (2**k, k): of the cosines, then of the sines
    quarter = torch.tensor([pi / 2, 0.0], dtype=torch.float64).repeat_interleave(len(signs))
    coefficients = half * scales.view(-1, 1, k)
    return coefficients, half @ shifts.view(-1, k, 1) + quarter[:, None]


def _once(rows: Tensor) -> Tensor:
    """The first row alone if all are equal."""
    return rows[:1] if (rows == rows[0]).all() else rows


def _group_sizes(n_qubits: int, n_gates: int) -> tuple[int, ...]:
    """The wires of each group, as equal as can be; few for a deep circuit, so that its tables stay
    small. From five wires on there are two groups at least.
    """
    most = next(k for k in range(_GROUP, 1, -1) if k == 2 or n_gates * 8**k < _TABLES)
    n_groups = max(-(-n_qubits // most), 1 + (n_qubits >= _GROUP))
    return tuple(n_qubits // n_groups + (group < n_qubits % n_groups) for group in range(n_groups))


class _Place(NamedTuple):
    step: int
    stage: int
    group: int


class _Collected(NamedTuple):
    rotations: dict[_Place, dict[int, Gate]]  # the rotations of every step, by wire
    pairs: dict[_Place, list[Gate]]  # the gates on two wires behind them, inside the group
    behind: list[tuple[Gate | Tensor, ...]]  # the gates of the entangler of every stage


def _collected(gates: Iterable[Gate | Tensor], owner: list[int]) -> _Collected:
    """Where each gate acts, with the group of every wire.

    A gate on two wires of different groups belongs to the entangler, and so do the gates on two
    wires that follow it; the next rotation starts a new stage. Example, wires 0 and 1 in group 0
    and wire 2 in group 1:

        RY 0, RY 1, CNOT 0 -> 1, RY 0, CNOT 1 -> 2, RY 2
        step 0: RY 0, RY 1, CNOT    step 1: RY 0    entangler: CNOT 1 -> 2    stage 1, step 0: RY 2
    """
    rotations: dict[_Place, dict[int, Gate]] = defaultdict(dict)
    pairs: dict[_Place, list[Gate]] = defaultdict(list)
    behind: list[tuple[Gate | Tensor, ...]] = [()]
    step_of = dict.fromkeys(owner, 0)  # of each group in this stage
    for gate in gates:
        if isinstance(gate, Tensor):
            behind[-1] += (gate,)
            continue
        group = owner[gate.wires[0]]
        if len(gate.wires) == 2:
            if behind[-1] or owner[gate.wires[1]] != group:
                behind[-1] += (gate,)
            else:
                pairs[_Place(step_of[group], len(behind) - 1, group)].append(gate)
            continue
        if behind[-1]:
            behind.append(())
            step_of = dict.fromkeys(owner, 0)
        place = _Place(step_of[group], len(behind) - 1, group)
        if place in pairs or gate.wires[0] in rotations[place]:
            step_of[group] += 1
            place = place._replace(step=step_of[group])
        rotations[place][gate.wires[0]] = gate
    return _Collected(rotations, pairs, behind)


def _signs(k: int) -> Sequence[tuple[int, ...]]:
    """Every s with s_1 = 1: 2**(k-1) tuples of k signs."""
    return [*product((1, -1), repeat=k)][: 2 ** (k - 1)]


@lru_cache(maxsize=1024)
def _table(axes: tuple[str, ...], pairs: tuple[Gate, ...]) -> Tensor:
    """The matrices of the features of one step, (2**k, 4**k) complex.

    They are E_s + E_-s of the cosines, then (E_s - E_-s) / i of the sines; the gates on two wires
    permute and sign their rows.
    """
    source, signs = permutation(pairs, len(axes))
    eye = torch.eye(2, dtype=torch.complex128)

    def projector(sign: Sequence[int]) -> Tensor:
        """E_s = (x) (I + s_w P_w) / 2, (2**k, 2**k)."""
        factors = [(eye + s * _PAULIS[axis]) / 2 for s, axis in zip(sign, axes, strict=True)]
        return reduce(torch.kron, factors)

    even = []
    odd = []
    for sign in _signs(len(axes)):
        here = projector(sign)
        there = projector([-s for s in sign])
        even.append(here + there)
        odd.append((here - there) / 1j)
    matrices = torch.stack(even + odd)  # (2**k, 2**k, 2**k)
    return (matrices[:, source] * signs[:, None]).flatten(1)


def _entangler(
    gates: Sequence[Gate | Tensor], n_qubits: int, dtype: torch.dtype, device: torch.device
) -> Entangler:
    source, signs = permutation(gates, n_qubits)
    is_moved = not torch.equal(source, torch.arange(len(source), dtype=source.dtype))
    is_signed = bool((signs != 1).any())
    return Entangler(
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
        control, target = (index >> (n_qubits - 1 - wire) & 1 for wire in gate.wires)  # bits
        if gate.name == "cz":
            signs = signs * (1 - 2 * (control & target))
        else:  # cx: basis state j behind it was j with the target flipped where the control is 1
            before = index ^ (control << (n_qubits - 1 - gate.wires[1]))
            source = source[before]
            signs = signs[before]
    return source, signs
