"""What a step costs on each backend: the probabilities of QPA's circuit and the gradient of a weighted sum of them.

    python benchmarks/backend_speed.py                                         # a table
    python benchmarks/backend_speed.py --qubits 7 --shots 65536 --backends exact qiskit:aer
    python benchmarks/backend_speed.py --json                                  # the same for machines

Backends by the names of the command line, each without shots, if it gives exact probabilities, and with. One thread,
interleaved, medians, in processor time; each circuit has 8 layers.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from time import process_time

import torch
from rich.console import Console
from rich.table import Table

from interleave import interleave
from qpeft.backends import CircuitRun, Jobs
from qpeft.backends.named import as_backend
from qpeft.circuits import Ansatz

N_LAYERS = 8
BACKENDS = ("exact", "pennylane:lightning.qubit", "pennylane:default.qubit", "pennylane:default.mixed", "qiskit:aer")


def runs(n_qubits: int, names: list[str], shots: int) -> dict[tuple[str, int | None], CircuitRun]:
    ansatz = Ansatz("ry_ladder", n_qubits, N_LAYERS)
    backends = {name: as_backend(name, n_qubits) for name in names}
    return {
        (name, count): CircuitRun(ansatz, Jobs(backend, count))
        for name, backend in backends.items()
        for count in ([None, shots] if backend.has_exact else [shots])
    }


def step(run: CircuitRun) -> Callable[[], object]:
    draw = torch.Generator().manual_seed(0)
    angles = (6 * torch.rand(run.ansatz.angle_shape, generator=draw, dtype=torch.float64) - 3).requires_grad_()
    weights = torch.randn(2**run.ansatz.n_qubits, generator=draw, dtype=torch.float64)
    return lambda: torch.autograd.grad(run(angles), angles, weights)


def measure(n_qubits: int, names: list[str], shots: int, repetitions: int) -> list[dict]:
    chosen = runs(n_qubits, names, shots)
    seconds = interleave({str(key): step(run) for key, run in chosen.items()}, repetitions, process_time)
    return [
        {
            "n_qubits": n_qubits,
            "backend": name,
            "shots": count,
            "gradient": run.gradient,
            "circuits": run.circuits_per_step,
            "seconds": seconds[str((name, count))],
        }
        for (name, count), run in chosen.items()
    ]


def table(rows: list[dict]) -> Table:
    shown = Table(title=f"One step, {N_LAYERS} layers, one thread")
    for heading in ("qubits", "backend", "shots", "gradient", "circuits", "ms"):
        shown.add_column(heading)
    for row in rows:
        shots = "" if row["shots"] is None else f"{row['shots']:,}"
        milliseconds = f"{1e3 * row['seconds']:.3g}"
        shown.add_row(str(row["n_qubits"]), row["backend"], shots, row["gradient"], str(row["circuits"]), milliseconds)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qubits", type=int, nargs="+", default=[5, 7])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--shots", type=int, default=8192)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [
        row
        for n_qubits in arguments.qubits
        for row in measure(n_qubits, arguments.backends, arguments.shots, arguments.repetitions)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
