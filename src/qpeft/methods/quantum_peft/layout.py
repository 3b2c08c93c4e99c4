"""The matrices of a Quantum-PEFT generator, their factors, and the batches in which these are computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qpeft.errors import ConfigError, setting
from qpeft.methods.quantum_peft.frames import frame_rank_for
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig


class Matrix(NamedTuple):
    """An adapted matrix: its module's name, widths, K = `rank` and s = `scale`."""

    name: str
    d_out: int
    d_in: int
    rank: int
    scale: float


class Part(NamedTuple):
    """All lora_A (side "v") or lora_B (side "u") tensors of one shape, adjacent in the flat vector."""

    side: str
    width: int  # d_in or d_out
    inner: int  # width of the factor, or of the frame
    rank: int
    matrices: tuple[int, ...]  # indices into the layout's matrices
    rows: tuple[int, ...]  # of their factors in the bank (inner, rank); empty: the frame itself

    @property
    def label(self) -> str:
        """A name for buffers, for example u768w32r8: d_out 768, factors of width 32 and rank 8."""
        return f"{self.side}{self.width}w{self.inner}r{self.rank}"


@dataclass(frozen=True)
class Layout:
    """The batches: `banks` maps (w, K) to the names of the factors, `parts` assigns them to the tensors."""

    matrices: tuple[Matrix, ...]
    banks: dict[tuple[int, int], tuple[str, ...]]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, config: QuantumPeftGeneratorConfig, matrices: Sequence[Matrix]) -> Layout:
        """The layout of `matrices`; raises ConfigError if a rank is larger than its matrix or frame."""
        found: dict[tuple[str, int, int, int], list[int]] = {}
        for index, matrix in enumerate(matrices):
            inner = _frame_rank(config, matrix)
            for side, width in (("v", matrix.d_in), ("u", matrix.d_out)):
                found.setdefault((side, width, inner or width, matrix.rank), []).append(index)
        banks: dict[tuple[int, int], dict[str, int]] = {}
        parts = []
        for (side, width, inner, rank), indices in found.items():
            rows: list[int] = []
            if config.family != "core" or side == "u":  # a core has a single factor between its frames
                bank = banks.setdefault((inner, rank), {})
                names = [f"{_unit(config, matrices[i].name)}.{side}" for i in indices]
                rows = [bank.setdefault(name, len(bank)) for name in names]
            parts.append(Part(side, width, inner, rank, tuple(indices), tuple(rows)))
        return cls(tuple(matrices), {key: tuple(names) for key, names in banks.items()}, tuple(parts))

    @property
    def size(self) -> int:
        """The entries of all tensors."""
        return sum(matrix.rank * (matrix.d_out + matrix.d_in) for matrix in self.matrices)

    def order(self) -> list[tuple[int, str]]:
        """(index of the matrix, side) of each tensor, in the order of the flat vector."""
        return [(index, part.side) for part in self.parts for index in part.matrices]


def _frame_rank(config: QuantumPeftGeneratorConfig, matrix: Matrix) -> int | None:
    smallest = min(matrix.d_out, matrix.d_in)
    if matrix.rank > smallest:
        raise ConfigError(
            f"{setting('r')}={matrix.rank} exceeds min(d_in, d_out)={smallest} for {matrix.name} "
            f"({matrix.d_in}->{matrix.d_out}); "
            f"choose a smaller {setting('r')}, set it for this module in {setting('rank_pattern')}, or exclude it with "
            f"{setting('exclude_modules')}"
        )
    if config.frame is None:
        return None
    if config.family == "core":
        return matrix.rank
    rank = frame_rank_for(matrix.d_out, matrix.d_in, config.frame_rank)
    if matrix.rank > rank:
        raise ConfigError(
            f"{setting('r')}={matrix.rank} exceeds the frame of {matrix.name}, {rank} directions; "
            f"raise {setting('frame_rank')}"
        )
    return rank


def _unit(config: QuantumPeftGeneratorConfig, name: str) -> str:
    """The name of the matrix, or with share="type" of its type: the name without layer indices."""
    return re.sub(r"\.\d+\.", ".*.", name) if config.share == "type" else name
