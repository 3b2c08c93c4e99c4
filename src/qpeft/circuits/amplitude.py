"""QAA's circuits on inputs embedded as amplitudes: exact expectations and probabilities.

The simulator runs every circuit on the block of normalized inputs. Of `mps` and `all_pairs` it runs
each block on its two wires alone, and the matrices (4, 4) are applied to the inputs; the tables of
the whole circuit would need 13 GB for 10 qubits. The default, <Z> behind one layer of `square`, has
a kernel, which takes a fifth of the time: the ring and what follows it are never applied. With psi
the real state behind the first rotations RY(t1), j' the basis index j with the bits that X_r flips
behind the ring inverted (set F_r),

    z_r = cos t3_r sum_j s_rj psi_j^2 - sin t3_r sum_j psi_j psi_j' cos(sum over i in F_r of s_ij t2_i)

The last sum has the same cosine for all j that agree in the bits of F_r up to a common inversion:
these are the *corners* of a flip.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qpeft.circuits.ansatz import (
    AMPLITUDE_ANSATZE,
    PAIR_ANSATZE,
    Ansatz,
    Gate,
    block_pairs,
    ring_pairs,
)
from qpeft.circuits.numerics import apply_gates, cached_tables, check_tensor
from qpeft.circuits.simulate import (
    Stages,
    compile_gates,
    compiled,
    evolve,
    group_matrices,
    permutation,
    squared,
)
from qpeft.errors import ConfigError

MOST_QUBITS = 16
SMALLEST_NORM = 1e-8
_CHUNK = 2**18  # amplitudes at a time, which fit the cache
_TOKENS = 128  # at a time, at least


def amplitude_qubits(width: int) -> int:
    """Qubits N = max(1, ceil(log2 width)) whose 2**N amplitudes hold `width` values.

    Raises ConfigError for a width below 1 and for more than 16 qubits.
    """
    if width < 1:
        raise ConfigError(f"an input must be at least 1 wide, got {width}")
    n_qubits = max(1, (width - 1).bit_length())
    if n_qubits > MOST_QUBITS:
        raise ConfigError(
            f"QAA needs n = {n_qubits} qubits for d_in = {width}; the simulator limit is"
            f" {MOST_QUBITS}."
        )
    return n_qubits


def amplitude_expectations(x: Tensor, angles: Tensor, ansatz: str = "square") -> Tensor:
    """<Z> of every wire, (..., N), behind a circuit that starts in x (..., d); angles (L, ...) in
    radians.

    Equation (QAA-1). The circuit is `Ansatz(ansatz, N, L)` with N = max(1, ceil(log2 d)), and the
    angles have its `angle_shape`: (L, blocks, N), or (L, pairs, 2, 3) of `mps` and `all_pairs`. It
    starts in the amplitudes ``a = x / max(||x||, 1e-8)`` padded with zeros to 2**N. With psi its
    final state, ``z_r = sum_j s_rj |psi_j|^2``, where s_rj is +1 if wire r is 0 in j, else -1. All
    are 0 for x = 0, and each is an exactly even function of x.

    x and angles are float32 or float64, both the same, and so is the result. Its gradients in x and
    angles are exact.

    A NaN or infinite value in x makes the results of its row NaN. Norms above 1.8e19 overflow in
    float32 and give 0, as in RMSNorm.

    Raises:
        ConfigError: an unknown ansatz, angles of another shape, dtype or device, more than 16
            qubits, and on the CPU angles that are not finite.
    """
    if ansatz not in AMPLITUDE_ANSATZE:
        raise ConfigError(
            f"unknown ansatz '{ansatz}'; choose one of {', '.join(AMPLITUDE_ANSATZE)}"
        )
    width = x.shape[-1] if x.ndim else 0
    circuit = Ansatz(ansatz, amplitude_qubits(width), len(angles))
    check_tensor(angles, circuit.angle_shape, f"{ansatz} on inputs of width {width}", batched=False)
    if (x.dtype, x.device) != (angles.dtype, angles.device):
        kinds = " and ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (x, angles))
        raise ConfigError(f"x and angles must have the same dtype and device, got {kinds}")
    n_qubits = circuit.n_qubits
    tokens = max(_TOKENS, _CHUNK >> n_qubits) if x.device.type == "cpu" else max(1, x.numel())
    with torch.autocast(x.device.type, enabled=False):
        signs = z_signs(n_qubits, x.dtype, x.device)  # (2**N, N)
        if ansatz == "square" and len(angles) == 1:
            expectations = _kernel(angles[0])
        else:
            expectations = lambda psi: squares_behind(psi, circuit, angles) @ signs  # noqa: E731
        chunks = x.reshape(-1, width).split(tokens)
        measured = [expectations(embedded(rows, n_qubits)) for rows in chunks]  # (tokens, N) each
    return torch.cat(measured).view(*x.shape[:-1], n_qubits)


def embedded(x: Tensor, n_qubits: int) -> Tensor:
    """Normalized rows (..., 2**N), padded with zeros, of x (..., d)."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    return torch.nn.functional.pad(x / norms, (0, 2**n_qubits - x.shape[-1]))


@cached_tables
def z_signs(n_qubits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2**N, N) of +-1: Z of every wire on basis index j."""
    index = torch.arange(2**n_qubits)[:, None]
    bits = index >> torch.arange(n_qubits - 1, -1, -1) & 1  # wire 0 is the most significant bit
    return (1 - 2 * bits).to(device, dtype)


def squares_behind(psi: Tensor, circuit: Ansatz, angles: Tensor) -> Tensor:
    """Squared amplitudes (T, 2**N) behind a circuit that starts in the states psi (T, 2**N)."""
    if circuit.name in PAIR_ANSATZE:
        # the states between blocks are computed again for the gradient
        psi = checkpoint(
            _through_blocks, circuit, angles, psi, use_reentrant=False, preserve_rng_state=False
        )
    else:
        program = compiled(circuit, angles.dtype, angles.device)
        psi = evolve(angles.reshape(1, -1), program, psi[None])[0]
    return squared(psi)


def _through_blocks(circuit: Ansatz, angles: Tensor, psi: Tensor) -> Tensor:
    """The states psi (T, 2**N) behind a circuit of blocks, complex; angles (L, pairs, 2, 3)."""
    n = circuit.n_qubits
    block = compiled(Ansatz("mps", 2, len(angles)), angles.dtype, angles.device)
    matrices = evolve(angles.movedim(1, 0).flatten(1), block, (0, 1, 2, 3)).mT  # (pairs, 4, 4)
    axes = [(a - n, b - n) for a, b in block_pairs(circuit.name, n)]
    by_wire = psi.to(matrices.dtype).unflatten(1, (2,) * n)  # (T, 2, ..., 2)
    return apply_gates(by_wire, matrices.unbind(), axes).flatten(1)


# -- the kernel of the default readout and depth


def _kernel(angles: Tensor) -> Callable[[Tensor], Tensor]:
    """From angles (3, N) to the map of the embedded inputs (T, 2**N) to (T, N)."""
    n_qubits = angles.shape[-1]
    program, behind_ring, signs, owner = _tables(n_qubits, angles.dtype, angles.device)
    phases = (signs * angles[1]).sum(1, keepdim=True).cos()  # (F - N, 1)
    of_corners = -2 * owner * angles[2].sin() * phases  # (F - N, N)
    weights = torch.cat([angles[2].cos().diag(), of_corners])  # (F, N)
    matrices = group_matrices(angles[:1], program)

    def expectations(psi: Tensor) -> Tensor:
        # states are columns, so that vector instructions run over the tokens
        psi = Stages.apply(psi[None], program.entanglers, *matrices)[0].mT
        products = [
            (here * there).sum(tuple(range(here.ndim - 1)))
            for wires in _flips(n_qubits)
            for here, there in _corners(psi, wires)
        ]
        terms = torch.cat([behind_ring @ psi.square(), torch.stack(products)])  # (F, T)
        return terms.mT @ weights  # (T, N)

    return expectations


def _corners(psi: Tensor, wires: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Views of psi (2**N, T): amplitudes with one pattern of the flipped wires, and those with the
    inverse pattern.
    """
    views = [psi.unflatten(0, [2] * (len(psi).bit_length() - 1) + [1])]
    for removed, wire in enumerate(wires):
        views = [part for view in views for part in view.unbind(wire - removed)]
    return list(zip(views[: len(views) // 2], reversed(views), strict=False))


@cached_tables
def _ring(n_qubits: int) -> list[int]:
    """R j for every basis index j: a ring of CNOTs moves amplitude j to R j."""
    ring = [Gate("cx", pair) for pair in ring_pairs(n_qubits)]
    sources, _ = permutation(ring, n_qubits)
    return sources.argsort().tolist()


@cached_tables
def _flips(n_qubits: int) -> list[list[int]]:
    """The wires that X of every wire r flips behind the ring: the bits of R^-1 e_r, with e_r the
    bit of wire r.
    """
    bits = [1 << (n_qubits - 1 - wire) for wire in range(n_qubits)]
    masks = [_ring(n_qubits).index(bit) for bit in bits]
    return [[wire for wire, bit in enumerate(bits) if mask & bit] for mask in masks]


@cached_tables
def _tables(
    n_qubits: int, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The program of RY on every wire; (N, 2**N) of +-1, Z of every wire on basis index j behind
    the ring.

    And (F - N, N) both, for all corners: the signs by their pattern, 0 for other bits; and their
    wires, one-hot.
    """
    turns = [Gate("ry", (wire,), (wire,)) for wire in range(n_qubits)]
    program = compile_gates(turns, n_qubits, (n_qubits,), dtype, device)
    signs = []
    owners = []
    for owner, wires in enumerate(_flips(n_qubits)):
        for pattern in product((1, -1), repeat=len(wires) - 1):
            sign = dict(zip(wires, (1, *pattern), strict=True))
            signs.append([sign.get(wire, 0) for wire in range(n_qubits)])
            owners.append([wire == owner for wire in range(n_qubits)])
    behind_ring = z_signs(n_qubits, dtype, device)[_ring(n_qubits)].mT
    return (
        program,
        behind_ring,
        torch.tensor(signs).to(device, dtype),
        torch.tensor(owners).to(device, dtype),
    )
