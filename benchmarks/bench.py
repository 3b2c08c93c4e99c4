"""The speed of qpeft compared with other programs: QPA's circuit, and training steps.

    python benchmarks/bench.py [--only circuits]            # `make bench`: some minutes
    python benchmarks/bench.py --quick                      # seconds, to see that it runs; the results mean nothing
    python benchmarks/bench.py --json benchmarks/results/bench.json
    python benchmarks/bench.py --page                       # write the tables of results/bench.json to the docs page

One thread. The speed is the time of the other over that of qpeft: above 1, qpeft is faster. In each round every
program of a row runs once, in one process; times are processor times, which other load hardly
affects, and medians. The results of a program are compared with qpeft's before it is timed; a
program that disagrees is refused, and the exit code is then 1. After Ctrl-C the completed
measurements are shown and saved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from math import pi
from pathlib import Path
from typing import Any

# other programs read it when they are imported, which the groups do late
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from scipy.sparse import diags
from torch import Tensor

from qpeft.circuits import Ansatz, probabilities, to_pennylane
from qpeft.files import write_text
from qpeft_lab.training.run_folder import environment
from timing import Row, Task, markdown, measure
from training_step import GENERATED, memory_rows, step_rows

RESULTS = Path(__file__).parent / "results" / "bench.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
N_LAYERS = 8
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def circuits(quick: bool) -> Iterator[Row]:
    """QPA's circuit: all probabilities and the gradient of a weighted sum of them."""
    for n_qubits in (4,) if quick else (7, 8, 10, 12, 16, 20):
        rounds = 2 if quick else 3 if n_qubits == 20 else 9
        for dtype, tolerance in TOLERANCE.items():
            ansatz, angles, weights = problem(n_qubits, dtype)
            ways = {"PennyLane default.qubit, backprop": default_qubit_gradient}
            if dtype == torch.float64:
                ways["PennyLane lightning.qubit, adjoint"] = lightning_qubit_gradient
            others = {name: partial(way, ansatz, angles, weights) for name, way in ways.items()}
            what = f"{n_qubits} qubits, forward and backward, {str(dtype).removeprefix('torch.')}"
            yield from measure(what, partial(gradient, angles, weights), others, tolerance, rounds)


def steps(quick: bool) -> Iterator[Row]:
    """A training step with each generated adapter compared with stock LoRA; memory."""
    usual = {"dtype": "float32", "device": "cpu", "layers": None, "r": 4, "tokens": 64, "steps": 1}
    for geometry, batch_size in (
        (("tiny", 1),) if quick else (("embedded", 8), ("gpt2", 1), ("gpt2", 8))
    ):
        options = Namespace(**usual, batch_size=batch_size, geometry=geometry)
        yield from step_rows(GENERATED, options, rounds=2 if quick else 9)
        if (geometry, batch_size) == ("gpt2", 1):
            yield from memory_rows(GENERATED, options)


def published(quick: bool) -> Iterator[Row]:
    """A training step with each of the published quantum adapters, and with their classical twins."""
    usual = {
        "dtype": "float32",
        "device": "cpu",
        "layers": 1,
        "r": 4,
        "tokens": 64,
        "batch_size": 1,
        "steps": 1,
    }
    methods = ["cua", "quic", "quanta", "quic_random", "mpo"]
    for geometry, twins in (("tiny", []),) if quick else (("gpt2", []), ("llama-1b", ["oft"])):
        options = Namespace(**usual, geometry=geometry)
        yield from step_rows([*methods, *twins], options, rounds=2 if quick else 9)


GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "circuits": circuits,
    "steps": steps,
    "published": published,
}

# -- QPA's circuit in each program


def problem(n_qubits: int, dtype: torch.dtype) -> tuple[Ansatz, Tensor, Tensor]:
    """A circuit, random angles (L, N) and weights (2**N,)."""
    draw = torch.Generator().manual_seed(n_qubits)
    angles = (torch.rand(N_LAYERS, n_qubits, generator=draw, dtype=dtype) * 2 - 1) * pi
    weights = torch.randn(2**n_qubits, generator=draw, dtype=dtype)
    return Ansatz("ry_ladder", n_qubits, N_LAYERS), angles.requires_grad_(), weights


def gradient(angles: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(probabilities(angles), angles, weights)


def default_qubit_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    circuit = pennylane(ansatz, "default.qubit", "backprop")
    return lambda: torch.autograd.grad(p := circuit(angles), angles, weights.to(p.dtype))


def lightning_qubit_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    """The adjoint method; the weighted sum is the mean of a diagonal observable."""
    circuit = pennylane(ansatz, "lightning.qubit", "adjoint", weights)
    return lambda: torch.autograd.grad(circuit(angles), angles)


def pennylane(
    ansatz: Ansatz, device: str, diff_method: str | None, weights: Tensor | None = None
) -> Callable:
    import pennylane as qml

    gates = to_pennylane(ansatz)
    wires = range(ansatz.n_qubits)
    observable = (
        None
        if weights is None
        else qml.SparseHamiltonian(diags(weights.numpy()).tocsr(), wires=wires)
    )

    @qml.qnode(
        qml.device(device, wires=ansatz.n_qubits), interface="torch", diff_method=diff_method
    )
    def circuit(angles):
        gates(angles)
        return qml.probs(wires=wires) if observable is None else qml.expval(observable)

    return circuit


def run(names: list[str], quick: bool, output: Path | None) -> bool:
    """Measure the groups; show and save also the rows of an interrupted group. False if a program
    was refused.
    """
    refused = False
    machine = {**environment(), "quick": quick}
    for name in names:
        rows: list[Row] = []
        try:
            for row in GROUPS[name](quick):
                rows.append(row)
                print(f"{name}: {row.what} / {row.other}", file=sys.stderr)
                if output:
                    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
                    measured = {"rows": [asdict(row) for row in rows], **machine}
                    write_text(
                        output, json.dumps(kept | {name: measured}, separators=(",", ":")) + "\n"
                    )
        finally:
            print(name, markdown(rows), sep="\n\n")
        refused |= any(row.refused for row in rows)
    return not refused


def filled(text: str, groups: dict[str, Any]) -> str:
    """The page with its tables: the rows of a group that a pattern selects; KeyError if it was not
    measured.
    """

    def table(found: re.Match[str]) -> str:
        rows = (Row(**row) for row in groups[found[2]]["rows"])
        shown = [row for row in rows if re.search(found[3], f"{row.what} / {row.other}")]
        return f"{found[1]}\n{markdown(shown)}\n{found[4]}"

    return re.sub(r"(?ms)^(<!-- table: (\w+), (.*?) -->\n).*?^(<!-- end -->)$", table, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="some groups"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and two rounds, to see that it runs"
    )
    parser.add_argument(
        "--json", type=Path, help="a file for all rows and the machine; other groups in it are kept"
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="only write the tables of results/bench.json to the page",
    )
    options = parser.parse_args(arguments)
    if options.page:
        write_text(
            PAGE,
            filled(
                PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))
            ),
        )
        return 0
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    try:
        return 0 if run(options.only, options.quick, options.json) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
