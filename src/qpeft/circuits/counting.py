"""How many angles a circuit or a construction of orthonormal columns has, and how many of them act.

A *construction* makes columns of any width N from circuits, whose widths are powers of two (`orthogonal`). Its first
circuit acts on the *leading block*, the first N1 = 2^floor(log2 N) rows.
"""

from __future__ import annotations

from qpeft.circuits.ansatz import Ansatz, two_design_pairs
from qpeft.circuits.columns import basis_columns
from qpeft.errors import ConfigError, setting

CONSTRUCTIONS = ("auto", "qsd", "qsd_full", "pad")


def count_angles(ansatz: str, n_qubits: int | None = None, n_layers: int = 1, *, width: int | None = None) -> int:
    """Number of angles of the `ansatz`: of a circuit on `n_qubits`, or of a construction of `width` rows.

    For example 56 for ("ry_ladder", 7, 8), 46 for ("two_design", 10, 2), 30 for ("square", 10) and 127 for
    ("qsd", n_layers=2, width=768).
    Constructions are `auto`, `qsd`, `qsd_full` and `pad`; a `two_design` on no qubits has no angles.

    Raises ConfigError for an unknown name, a size below 1, and for both or neither of n_qubits and width.
    """
    if (n_qubits is None) == (width is None):
        raise ConfigError(f"count '{ansatz}' either by n_qubits or by width, got n_qubits={n_qubits}, width={width}")
    if n_qubits is not None:
        empty = ansatz == "two_design" and n_qubits == 0  # the 1 x 1 matrix [1]
        circuit = Ansatz(ansatz, 1 if empty else n_qubits, n_layers)
        return 0 if empty else circuit.n_angles
    assert width is not None
    return count_orthogonal(width, n_layers, ansatz)


def count_orthogonal(width: int, n_layers: int, construction: str = "auto") -> int:
    """Number of angles of a construction, for example 127 for (768, 2)."""
    name = resolve_construction(width, construction)
    if name.startswith("qsd"):
        return sum(part_sizes(width, n_layers, with_v2=name == "qsd_full"))
    return count_angles("two_design", column_qubits(width, construction), n_layers)


def resolve_construction(width: int, construction: str) -> str:
    """The construction used at `width`: "circuit" (a power of two), "qsd", "qsd_full" or "pad".

    Raises ConfigError for an unknown name and a width below 1.
    """
    if construction not in CONSTRUCTIONS:
        raise ConfigError(
            f"unknown {setting('construction')} '{construction}'; choose one of {', '.join(CONSTRUCTIONS)}"
        )
    if width < 1:
        raise ConfigError(f"width must be at least 1, got {width}")
    if width.bit_count() == 1:
        return "circuit"
    if construction == "auto":
        return "qsd" if width.bit_count() <= 3 else "pad"
    return construction


def column_qubits(width: int, construction: str = "auto") -> int:
    """Wires on which the columns are chosen: ceil(log2 N) for `pad`, otherwise those of the leading block."""
    padded = resolve_construction(width, construction) == "pad"
    return (width - 1).bit_length() if padded else width.bit_length() - 1


def leading_block(width: int) -> int:
    """N1, the largest power of two that is at most `width`."""
    return 1 << (width.bit_length() - 1)


def part_sizes(width: int, n_layers: int, with_v2: bool = True) -> list[int]:
    """Numbers of angles of V1, V2, c, U1 and U2 (`cosine_sine`), in the order in which they are stored."""
    n1 = leading_block(width)
    n2 = width - n1
    block = count_angles("two_design", n1.bit_length() - 1, n_layers)
    rest = _count_full(n2, n_layers)
    return [block, rest if with_v2 else 0, 1 + (n2 - 1).bit_length(), block, rest]


def count_acting(width: int, n_layers: int, construction: str, columns_kind: str, k: int) -> int:
    """How many of the angles can move the k columns: the rank of their Jacobian at almost every point.

    Angles without effect are those of the top V2 of `qsd_full` (it multiplies zeros) and, in the first circuit, one
    angle of every step-a pair whose two wires are the same in all columns. No part can do more than rotate the columns
    in its own rows. The true rank is up to three lower in corners: where that last limit is nearly reached, and for
    `pad` at one row more than a power of two.

    Raises ConfigError for unknown names and for k outside what the width and the construction hold.
    """
    check_rank(k, width, construction)
    name = resolve_construction(width, construction)
    constant = _constant_pairs(columns_kind, column_qubits(width, construction), k)
    limit = _frame_dimension(width, k)
    if not name.startswith("qsd"):
        return min(count_orthogonal(width, n_layers, construction) - constant, limit)
    n1 = leading_block(width)
    v1, _, c, u1, _ = part_sizes(width, n_layers)
    most = _frame_dimension(n1, k)
    return min(min(v1 - constant, most) + c + min(u1, most) + _acting_full(width - n1, n_layers, k), limit)


def check_rank(k: int, width: int, construction: str) -> None:
    """Raise ConfigError if the width or its leading block cannot hold k columns."""
    name = resolve_construction(width, construction)
    if name.startswith("qsd") and k > leading_block(width):
        raise ConfigError(
            f"{setting('r')}={k} exceeds the leading block {leading_block(width)} of width {width}; "
            f"use {setting('construction')}='pad'"
        )
    if k > width:
        raise ConfigError(f"{width} rows hold at most {width} orthonormal columns, got {k}")


def _count_full(width: int, n_layers: int) -> int:
    n1 = leading_block(width)
    if n1 == width:
        return count_angles("two_design", width.bit_length() - 1, n_layers)
    return sum(part_sizes(width, n_layers))


def _acting_full(width: int, n_layers: int, k: int) -> int:
    limit, n1 = _frame_dimension(width, k), leading_block(width)
    if n1 == width:
        return min(_count_full(width, n_layers), limit)
    c = part_sizes(width, n_layers)[2]
    return min(c + 2 * (_acting_full(n1, n_layers, k) + _acting_full(width - n1, n_layers, k)), limit)


def _frame_dimension(width: int, k: int) -> int:
    """Dimension of the set of k orthonormal columns of `width` rows; of all orthogonal matrices for more columns."""
    k = min(k, width)
    return width * k - k * (k + 1) // 2


def _constant_pairs(columns_kind: str, n_qubits: int, k: int) -> int:
    """Step-a pairs whose two wires have the same bits in all k columns."""
    index = basis_columns(columns_kind, n_qubits, k)
    varying = [bool((index >> (n_qubits - 1 - wire) & 1).unique().numel() > 1) for wire in range(n_qubits)]
    return sum(not (varying[first] or varying[second]) for first, second in two_design_pairs(n_qubits, 0))
