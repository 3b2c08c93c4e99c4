"""How fast QPA's circuit is: all 2**N probabilities and the gradient of one weighted sum of them.

    python benchmarks/circuit_speed.py            # a table
    python benchmarks/circuit_speed.py --large    # 15 to 26 qubits, against a copy of as many numbers
    python benchmarks/circuit_speed.py --json     # the same for machines

Compared with PennyLane's default.qubit (torch backprop) and, in float64, with lightning.qubit's adjoint method
(the weighted sum as the expectation of a diagonal observable; the probabilities come for free in ours, not there).
One thread, interleaved, medians; each circuit has 8 layers. With --large in processor time, which other programs
disturb less.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from time import thread_time

import pennylane as qml
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse import diags

from interleave import interleave
from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.ladder_groups import group_probabilities

N_LAYERS = 8
SMALL, LARGE = (4, 6, 8, 10, 12, 14), (15, 16, 18, 20, 22, 24, 26)
GROUPS_UP_TO = 20  # qubits; beyond, the older route takes seconds
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def apply(ansatz: Ansatz, angles) -> None:
    operations = {"ry": qml.RY, "cx": qml.CNOT}
    for gate in ansatz.gates():
        parameters = () if gate.slot is None else (angles[gate.slot],)
        operations[gate.name](*parameters, wires=gate.wires)


def gradient_of(forward: Callable[[torch.Tensor], torch.Tensor], angles: torch.Tensor, weights: torch.Tensor):
    def run():
        p = forward(angles)
        return torch.autograd.grad(p, angles, weights.to(p.dtype))[0]

    return run


def default_qubit(ansatz: Ansatz, angles: torch.Tensor, weights: torch.Tensor):
    @qml.qnode(qml.device("default.qubit", wires=ansatz.n_qubits), interface="torch", diff_method="backprop")
    def circuit(angles):
        apply(ansatz, angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return gradient_of(circuit, angles, weights)


def lightning(ansatz: Ansatz, angles: torch.Tensor, weights: torch.Tensor):
    observable = qml.SparseHamiltonian(diags(weights.numpy()).tocsr(), wires=range(ansatz.n_qubits))

    @qml.qnode(qml.device("lightning.qubit", wires=ansatz.n_qubits), interface="torch", diff_method="adjoint")
    def circuit(angles):
        apply(ansatz, angles)
        return qml.expval(observable)

    return lambda: torch.autograd.grad(circuit(angles), angles)[0]


def problem(n_qubits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n_qubits)
    angles = (torch.rand(N_LAYERS, n_qubits, generator=draw, dtype=dtype) * 2 - 1) * math.pi
    return angles.requires_grad_(), torch.randn(2**n_qubits, generator=draw, dtype=dtype)


def measure(n_qubits: int, precision: str, repetitions: int) -> dict[str, float | int | str]:
    """Seconds of each program for one size, after checking that all compute the same gradient."""
    dtype = PRECISIONS[precision]
    angles, weights = problem(n_qubits, dtype)
    ansatz = Ansatz("ry_ladder", n_qubits, N_LAYERS)
    tasks = {
        "qpeft": gradient_of(probabilities, angles, weights),
        "default.qubit": default_qubit(ansatz, angles, weights),
    }
    if dtype == torch.float64:
        tasks["lightning.qubit"] = lightning(ansatz, angles, weights)
    expected = tasks["qpeft"]()
    for name, task in tasks.items():
        tolerance = 1e-6 if dtype == torch.float64 else 1e-4  # lightning's sparse observable is good to 1e-8
        torch.testing.assert_close(task(), expected, rtol=tolerance, atol=tolerance, msg=f"{name} disagrees")
    return {"n_qubits": n_qubits, "precision": precision, **interleave(tasks, repetitions)}


def measure_large(n_qubits: int, repetitions: int) -> dict[str, float | int]:
    """Processor seconds of a float32 circuit beside those of one copy of its probabilities, `copy.copy_(vector)`."""
    angles, weights = problem(n_qubits, torch.float32)
    copy = torch.empty_like(weights)
    tasks = {
        "copy": lambda: copy.copy_(weights),
        "probabilities": lambda: probabilities(angles.detach()),
        "with gradient": gradient_of(probabilities, angles, weights),
    }
    if n_qubits <= GROUPS_UP_TO:
        tasks["groups"] = gradient_of(group_probabilities, angles, weights)
        error = (tasks["with gradient"]() - tasks["groups"]()).norm() / tasks["groups"]().norm()
        assert error < 1e-5, "the routes disagree"
    return {
        "n_qubits": n_qubits,
        **interleave(tasks, min(repetitions, 5) if n_qubits > 22 else repetitions, thread_time),
    }


def large_table(rows: list[dict]) -> Table:
    shown = Table(title=f"Probabilities and gradient, float32, {N_LAYERS} layers, one thread")
    for heading in ("qubits", "forward, ms", "with gradient, ms", "copies", "ns a probability", "faster than groups"):
        shown.add_column(heading, justify="right")
    for row in rows:
        seconds = row["with gradient"]
        shown.add_row(
            str(row["n_qubits"]),
            f"{1e3 * row['probabilities']:.1f}",
            f"{1e3 * seconds:.1f}",
            f"{seconds / row['copy']:.0f}",
            f"{1e9 * seconds / 2 ** row['n_qubits']:.1f}",
            f"{row['groups'] / seconds:.1f}x" if "groups" in row else "",
        )
    return shown


def table(rows: list[dict]) -> Table:
    shown = Table(title=f"Probabilities and gradient, {N_LAYERS} layers, one thread: times as fast as ...")
    for heading in ("qubits", "precision", "qpeft, ms", "default.qubit backprop", "lightning.qubit adjoint"):
        shown.add_column(heading, justify="right")
    for row in rows:
        ratios = [
            f"{row[peer] / row['qpeft']:.0f}x" if peer in row else "" for peer in ("default.qubit", "lightning.qubit")
        ]
        shown.add_row(str(row["n_qubits"]), row["precision"], f"{1e3 * row['qpeft']:.2f}", *ratios)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="large circuits, against copies of their vector")
    parser.add_argument("--qubits", type=int, nargs="+", help="other sizes than the usual")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print seconds as JSON instead of a table of ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = arguments.qubits or (LARGE if arguments.large else SMALL)
    if arguments.large:
        rows = [measure_large(n, arguments.repetitions) for n in sizes]
    else:
        rows = [measure(n, precision, arguments.repetitions) for n in sizes for precision in PRECISIONS]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(large_table(rows) if arguments.large else table(rows))


if __name__ == "__main__":
    main()
