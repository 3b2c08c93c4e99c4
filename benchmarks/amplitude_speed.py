"""How fast QAA's branch is: features of every token, V f + c, and the gradients of x, angles, V and c.

    python benchmarks/amplitude_speed.py            # a table
    python benchmarks/amplitude_speed.py --json     # the same for machines

Measured against the frozen linear map that the branch stands beside (forward, and backward to x). Also shown: LoRA of
rank 8, and for `square` the same branch gate by gate in plain autograd and by PennyLane's default.qubit (torch
backprop, the tokens as one batch). One thread, float32, processor time, which other programs disturb less; all take
turns, and each ratio is the median of several such measurements, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from math import pi
from statistics import median
from time import process_time

import pennylane as qml
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interleave import interleave
from qpeft.circuits import Ansatz, amplitude_expectations, amplitude_qubits
from qpeft.circuits.gates import gate_expectations

Features = Callable[[Tensor, Tensor], Tensor]  # (T, d), angles -> (T, N)
ANSATZE = ("square", "qaa", "rxyz")


def gate_by_gate(circuit: Ansatz) -> Features:
    return lambda x, angles: gate_expectations(circuit, angles, x)


def default_qubit(circuit: Ansatz) -> Features:
    wires, rotations = range(circuit.n_qubits), {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ}

    @qml.qnode(qml.device("default.qubit", wires=wires), interface="torch", diff_method="backprop")
    def run(x, angles):
        qml.AmplitudeEmbedding(x, wires, pad_with=0.0, normalize=True)
        for gate in circuit.gates():
            if gate.slot is None:
                qml.CNOT(gate.wires)
            else:
                rotations[gate.name](angles[gate.slot], gate.wires[0])
        return [qml.expval(qml.PauliZ(wire)) for wire in wires]

    return lambda x, angles: torch.stack(run(x, angles), -1).to(x.dtype)


class Problem:
    """Inputs, and the gradient that comes back from the output of a square linear map."""

    def __init__(self, width: int, n_tokens: int, n_layers: int) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.n_qubits, self.n_layers = amplitude_qubits(width), n_layers
        self.x = self.random(n_tokens, width).requires_grad_()
        self.weight = self.random(width, width) / width**0.5
        self.grad = self.random(n_tokens, width)
        self.v = self.random(width, self.n_qubits).requires_grad_()
        self.c = self.random(width).requires_grad_()

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw)

    def gradients(self, y: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (self.x, *wanted), self.grad)

    def linear(self) -> tuple[Tensor, ...]:
        return self.gradients(F.linear(self.x, self.weight))

    def lora(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return self.gradients(F.linear(F.linear(self.x, a), b), a, b)

    def branch(self, features: Features, angles: Tensor) -> tuple[Tensor, ...]:
        return self.gradients(F.linear(features(self.x, angles), self.v, self.c), angles, self.v, self.c)

    def tasks(self) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        width = self.x.shape[1]
        ab = self.random(8, width).requires_grad_(), self.random(width, 8).requires_grad_()
        tasks: dict[str, Callable] = {"linear": self.linear, "LoRA, rank 8": partial(self.lora, *ab)}
        for name in ANSATZE:
            circuit = Ansatz(name, self.n_qubits, self.n_layers)
            angles = (pi * self.random(*circuit.angle_shape)).requires_grad_()
            tasks[name] = partial(self.branch, partial(amplitude_expectations, ansatz=name), angles)
            if name == "square":
                tasks["square, gates"] = partial(self.branch, gate_by_gate(circuit), angles)
                tasks["square, default.qubit"] = partial(self.branch, default_qubit(circuit), angles)
        return tasks


def measure(problem: Problem, rounds: int, repetitions: int) -> list[dict[str, float]]:
    """Seconds of each task, `rounds` times, after checking that all ways to `square` give the same gradients."""
    tasks = problem.tasks()
    expected = tasks["square"]()
    for name in ("square, gates", "square, default.qubit"):
        for found, wanted in zip(tasks[name](), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    return [interleave(tasks, repetitions, process_time) for _ in range(rounds)]


def ratios(rounds: list[dict[str, float]], name: str, over: str) -> dict[str, float]:
    values = [one[name] / one[over] for one in rounds]
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def table(rounds: list[dict[str, float]], title: str) -> Table:
    shown = Table(title=title)
    for heading in ("", "ms", "times the linear map", "lowest to highest"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name in rounds[0]:
        ratio = ratios(rounds, name, "linear")
        spread = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f}"
        milliseconds = 1e3 * median(one[name] for one in rounds)
        shown.add_row(name, f"{milliseconds:.1f}", f"{ratio['median']:.2f}", spread)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="measurements")
    parser.add_argument("--repetitions", type=int, default=3, help="of each task in a measurement")
    parser.add_argument("--json", action="store_true", help="print seconds and ratios as JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = measure(
        Problem(arguments.width, arguments.tokens, arguments.layers), arguments.rounds, arguments.repetitions
    )
    if arguments.json:
        of_linear = {name: ratios(rounds, name, "linear") for name in rounds[0]}
        of_square = {name: ratios(rounds, name, "square") for name in rounds[0] if name.startswith("square,")}
        print(json.dumps({**vars(arguments), "over linear": of_linear, "over square": of_square, "seconds": rounds}))
        return
    size = f"width {arguments.width}, {arguments.tokens} tokens, L = {arguments.layers}, one thread, float32"
    Console().print(table(rounds, f"Forward and gradient: {size}"))
    for name in ("square, gates", "square, default.qubit"):
        ratio = ratios(rounds, name, "square")
        print(
            f"{name}: {ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f}) times the time of square"
        )


if __name__ == "__main__":
    main()
