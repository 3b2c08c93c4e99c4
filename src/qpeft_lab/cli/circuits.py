"""`qpeft circuits draw | count | export`: a circuit as a drawing, as counts, or as OpenQASM 3."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError
from qpeft.user_code import is_file
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.console import Answer, line, working
from qpeft_lab.cli.options import Fields
from qpeft_lab.user_files import named_ansatz

if TYPE_CHECKING:
    from qpeft.circuits import Ansatz


@dataclass(kw_only=True)
class Choice:
    """A circuit: of an ansatz and its size, or of an adapter."""

    ansatz: str = option(
        "ry_ladder",
        "ry_ladder is QPA's default, two_design Quantum-PEFT's; square, qaa and rxyz are QAA's. FILE.py:NAME is an "
        "ansatz of your own, which the file registers.",
    )
    n_qubits: int = option(7, "Number of qubits.", at_least=1, at_most=1000)
    n_layers: int = option(8, "Number of layers.", at_least=1, at_most=10_000)
    adapter: Path | None = option(
        None, "Run folder or compact adapter: its circuit with the trained angles, instead of an ansatz.", metavar="DIR"
    )


Chosen = Annotated[dict[str, Any], Fields(Choice)]


@command
def draw(*, chosen: Chosen) -> Answer:
    """Draw a circuit as text; with an adapter, also list its angles. Rows end at the terminal's width.

    Examples:

      qpeft circuits draw --ansatz two_design --n-qubits 5 --n-layers 2
      qpeft circuits draw --ansatz own_ansatz.py:cz_ring --n-qubits 4 --n-layers 2
      qpeft circuits draw --adapter run
    """
    ansatz, angles = _circuit(chosen)

    def show(console: Any) -> None:
        line(console, ansatz.draw(console.width))
        if angles is not None:
            rows = ("".join(f"{angle:9.4f}" for angle in row) for row in angles.reshape(-1, angles.shape[-1]))
            line(console, "\nangles in radians, one column for each wire\n\n" + "\n".join(rows))

    shown = None if angles is None else angles.tolist()
    return Answer({**_size(ansatz), "angles": shown, "drawing": ansatz.draw(100)}, show)


@command
def count(*, chosen: Chosen) -> Answer:
    """Count angles, gates and depth, the number of gates on the longest path.

    Examples:

      qpeft circuits count
      qpeft circuits count --ansatz square --n-qubits 10 --n-layers 1 --json
    """
    ansatz, _ = _circuit(chosen)
    gates = dict(Counter(gate.name for gate in ansatz.gates()))
    pairs = sum(len(gate.wires) == 2 for gate in ansatz.gates())
    counts = {"n_angles": ansatz.n_angles, "gates": gates, "two_qubit_gates": pairs, "depth": depth(ansatz)}
    return Answer({**_size(ansatz), **counts})


@command
def export(
    *,
    chosen: Chosen,
    out: Path | None = option(None, "File to write. Default: standard output.", metavar="FILE"),
) -> Answer:
    """Export a circuit to OpenQASM 3, with the angles of an adapter or with free angles.

    Qiskit reads it with qasm3.loads. Circuits of QAA start in the state |0...0> here, without their input.

    Examples:

      qpeft circuits export --n-qubits 4 --n-layers 2
      qpeft circuits export --adapter run --out circuit.qasm
    """
    from qpeft.circuits import to_openqasm
    from qpeft.files import write_text
    from qpeft_lab.files import output_file

    target = None if out is None else output_file(out)
    ansatz, angles = _circuit(chosen)
    text = to_openqasm(ansatz, angles)
    if target is None:
        return Answer({**_size(ansatz), "text": text}, lambda console: console.out(text.rstrip(), highlight=False))
    write_text(target, text)
    return Answer({**_size(ansatz), "out": out})


def circuits() -> None:
    """Draw circuits, count their gates, and export them to OpenQASM 3.

    Examples:

      qpeft circuits draw --n-qubits 4
      qpeft circuits count
      qpeft circuits export --adapter run --out circuit.qasm
    """


def group() -> typer.Typer:
    """The commands of `qpeft circuits`."""
    return application((draw, count, export), circuits, no_args_is_help=True)


def _circuit(chosen: dict[str, Any]) -> tuple[Ansatz, Any]:
    """The ansatz of the options, or of an adapter with the angles, float64 (L, N), of its first circuit."""
    from qpeft.circuits import Ansatz

    choice = Choice(**chosen)
    check_fields(choice)
    if choice.adapter is None:
        return Ansatz(named_ansatz(choice.ansatz), choice.n_qubits, choice.n_layers), None
    own = choice.ansatz if is_file(choice.ansatz) else None
    if own is None and chosen.keys() & {"ansatz", "n_qubits", "n_layers"}:
        raise ConfigError(
            "--adapter determines the circuit; leave out --ansatz, --n-qubits and --n-layers, apart from --ansatz "
            "FILE.py:NAME for an adapter with an ansatz of your own"
        )
    with working("Reading the adapter"):
        from qpeft_lab.diagnose.adapters import Adapter

        folder = Loading(ansatz=own).find(choice.adapter)
        found = Adapter(folder).circuit()
    if found is None:
        raise ConfigError(f"{folder} has no circuit that starts in |0...0>; give another adapter, or pass --ansatz")
    return found.ansatz, found.angles.numpy()


def _size(ansatz: Ansatz) -> dict[str, Any]:
    return {"ansatz": ansatz.name, "n_qubits": ansatz.n_qubits, "n_layers": ansatz.n_layers}


def depth(ansatz: Ansatz) -> int:
    """Number of gates on the longest path through the circuit."""
    passed = [0] * ansatz.n_qubits  # gates on the longest path to each wire
    for gate in ansatz.gates():
        step = 1 + max(passed[wire] for wire in gate.wires)
        for wire in gate.wires:
            passed[wire] = step
    return max(passed)
