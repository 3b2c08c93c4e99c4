"""How fast Quantum-PEFT's circuit is: K orthonormal columns of M circuits and the gradient of their angles.

    python benchmarks/columns_speed.py            # a table
    python benchmarks/columns_speed.py --json     # the same for machines

Compared with the same gates one after the other, all circuits at once in plain autograd; with `--pennylane` also
with default.qubit (torch backprop), which gets the angles as a batch and one column after the other.
One thread, interleaved, medians, float32; the columns are those of `spread`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from interleave import interleave
from qpeft.circuits import Ansatz, basis_columns, count_angles, two_design_columns

Columns = Callable[[torch.Tensor], torch.Tensor]


class Size(NamedTuple):
    n_qubits: int
    n_layers: int
    k: int


SIZES = [
    Size(8, 1, 8),
    Size(8, 2, 8),
    Size(10, 1, 16),
    Size(10, 2, 16),
    Size(10, 4, 16),
    Size(10, 8, 16),
    Size(12, 2, 16),
    Size(12, 2, 64),
]


def gate_by_gate(size: Size, columns: list[int]) -> Columns:
    """Every gate is a step of autograd on all circuits and columns: (M, P) -> (M, 2**N, K)."""
    gates = list(Ansatz("two_design", size.n_qubits, size.n_layers).gates())
    start = torch.zeros(2**size.n_qubits, len(columns)).index_put_(
        (torch.tensor(columns), torch.arange(len(columns))), torch.tensor(1.0)
    )

    def turn(u: torch.Tensor, wire: int, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        zero, one = u.view(len(u), 2**wire, 2, -1).unbind(2)
        return torch.stack([c * zero - s * one, s * zero + c * one], 2)

    def flip(u: torch.Tensor, wire: int) -> torch.Tensor:
        sign = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # CZ on neighbours
        return u.view(len(u), 2**wire, 2, 2, -1) * sign[..., None]

    def run(angles: torch.Tensor) -> torch.Tensor:
        cosines, sines = ((angles / 2).cos()[..., None, None], (angles / 2).sin()[..., None, None])
        u = start.expand(len(angles), -1, -1).contiguous()
        for gate in gates:
            wire = gate.wires[0]
            u = flip(u, wire) if gate.slot is None else turn(u, wire, cosines[:, gate.slot[0]], sines[:, gate.slot[0]])
        return u.view(len(angles), *start.shape)

    return run


def pennylane(size: Size, columns: list[int]) -> Columns:
    """default.qubit with the circuits as a batch, column by column."""
    import pennylane as qml

    wires = range(size.n_qubits)
    gates = list(Ansatz("two_design", size.n_qubits, size.n_layers).gates())

    @qml.qnode(qml.device("default.qubit", wires=size.n_qubits), interface="torch", diff_method="backprop")
    def column(angles, index):
        qml.BasisState([index >> (size.n_qubits - 1 - wire) & 1 for wire in wires], wires=wires)
        for gate in gates:
            if gate.slot is None:
                qml.CZ(wires=gate.wires)
            else:
                qml.RY(angles[:, gate.slot[0]], wires=gate.wires)
        return qml.state()

    return lambda angles: torch.stack([column(angles, index).real for index in columns], -1).float()


def measure(size: Size, n_modules: int, repetitions: int, with_pennylane: bool) -> dict[str, float | int]:
    """Seconds of each program for one size, after checking that all compute the same gradient."""
    draw = torch.Generator().manual_seed(0)
    n_angles = count_angles("two_design", size.n_qubits, size.n_layers)
    angles = (torch.randn(n_modules, n_angles, generator=draw)).requires_grad_()
    weights = torch.randn(n_modules, 2**size.n_qubits, size.k, generator=draw)
    columns = basis_columns("spread", size.n_qubits, size.k).tolist()
    programs: dict[str, Columns] = {
        "qpeft": lambda angles: two_design_columns(angles, size.n_qubits, size.n_layers, columns),
        "gates": gate_by_gate(size, columns),
    }
    if with_pennylane:
        programs["default.qubit"] = pennylane(size, columns)
    tasks = {name: lambda p=p: torch.autograd.grad(p(angles), angles, weights)[0] for name, p in programs.items()}
    expected = tasks["qpeft"]()
    for name, task in tasks.items():
        torch.testing.assert_close(task(), expected, rtol=1e-4, atol=1e-3, msg=f"{name} disagrees")
    return {**size._asdict(), "n_modules": n_modules, **interleave(tasks, repetitions)}


def table(rows: list[dict], n_modules: int) -> Table:
    peers = [name for name in ("gates", "default.qubit") if name in rows[0]]
    shown = Table(title=f"Columns and gradient of {n_modules} circuits, one thread, float32: times as fast as ...")
    for heading in ("qubits", "layers", "columns", "qpeft, ms", *peers):
        shown.add_column(heading, justify="right")
    for row in rows:
        ratios = [f"{row[peer] / row['qpeft']:.0f}x" for peer in peers]
        sizes = (str(row[name]) for name in Size._fields)
        shown.add_row(*sizes, f"{1e3 * row['qpeft']:.2f}", *ratios)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--rows", type=int, default=len(SIZES), help="only the first sizes, which are the small ones")
    parser.add_argument("--pennylane", action="store_true", help="also default.qubit: many minutes")
    parser.add_argument("--json", action="store_true", help="print seconds as JSON instead of a table of ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = SIZES[: arguments.rows]
    rows = [measure(size, arguments.modules, arguments.repetitions, arguments.pennylane) for size in sizes]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(table(rows, arguments.modules))


if __name__ == "__main__":
    main()
