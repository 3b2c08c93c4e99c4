"""`qpeft circuits draw | count | export`: a circuit as a drawing, as counts, or as OpenQASM 3."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qpeft.checks import MOST_LAYERS, option
from qpeft.errors import ConfigError
from qpeft.user_code import is_file
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.console import Answer, line, say, stderr
from qpeft_lab.user_files import named_ansatz

if TYPE_CHECKING:
    from qpeft.circuits import Ansatz


_ASCII = str.maketrans("●⊕─┼…θ", "o+-|~t")  # for terminals of another encoding


@dataclass(kw_only=True)
class Choice:
    """A circuit: of an ansatz and its size, or of an adapter."""

    ansatz: str | None = option(
        None,
        "ry_ladder, the default, is QPA's; two_design is Quantum-PEFT's; square, qaa, rxyz, mps and"
        " all_pairs are QAA's. FILE.py:NAME is an ansatz of your own, which the file registers.",
    )
    n_qubits: int | None = option(None, "Number of qubits. Default: 7.", at_least=1, at_most=1000)
    n_layers: int | None = option(
        None, "Number of layers. Default: 8.", at_least=1, at_most=MOST_LAYERS
    )
    adapter: Path | None = option(
        None,
        "Run folder or compact adapter: its circuit with the trained angles, instead of an ansatz.",
        metavar="DIR",
    )

    def circuit(self) -> tuple[Ansatz, Any]:
        """The ansatz; and of an adapter the angles, float64 (L, N), of its first circuit, otherwise
        None.
        """
        from qpeft.circuits import Ansatz

        if self.adapter is None:
            name = named_ansatz(self.ansatz or "ry_ladder")
            return Ansatz(name, self.n_qubits or 7, self.n_layers or 8), None
        own = self.ansatz if is_file(self.ansatz) else None
        if self.n_qubits or self.n_layers or self.ansatz != own:
            raise ConfigError(
                "--adapter determines the circuit; leave out --ansatz, --n-qubits and --n-layers,"
                " apart from --ansatz FILE.py:NAME for an adapter with an ansatz of your own"
            )
        with stderr().status("Reading the adapter"):
            from qpeft_lab.diagnose.adapters import Adapter

            loading = Loading(ansatz=own)
            folder = loading.find(self.adapter)
            of_adapter = Adapter(folder, loading.frames).circuit()
        if of_adapter is None:
            raise ConfigError(
                f"{self.adapter} has no circuit that starts in |0...0>; give another one, or"
                " --ansatz"
            )
        if of_adapter.n_circuits > 1:
            say("Note:", f"the adapter has {of_adapter.n_circuits} circuits; this is the first one")
        return of_adapter.ansatz, of_adapter.angles.numpy()


@command
def draw(*, choice: Choice) -> Answer:
    """Draw a circuit as text; with an adapter, also list its angles. Rows end at the terminal's
    width.

    Examples:

      qpeft circuits draw --ansatz own_ansatz.py:cz_ring --n-qubits 4 --n-layers 2
      qpeft circuits draw --adapter run
    """
    ansatz, angles = choice.circuit()

    def show(console: Any) -> None:
        drawing = ansatz.draw(console.width)
        line(console, drawing if console.encoding.startswith("utf") else drawing.translate(_ASCII))
        if angles is not None:
            rows = (
                "".join(f"{angle:9.4f}" for angle in row)
                for row in angles.reshape(-1, angles.shape[-1])
            )
            columns = f"of shape {angles.shape}, in which the gates index them"
            slots = {(gate.slot[-1:], gate.wires) for gate in ansatz.gates() if gate.slot}
            if angles.ndim > 1 and all(column == wires for column, wires in slots):
                columns = "one column for each wire"
            line(console, f"\nangles in radians, {columns}\n\n" + "\n".join(rows))

    shown = None if angles is None else angles.tolist()
    return Answer({**_size(ansatz), "angles": shown, "drawing": ansatz.draw(100)}, show)


@command
def count(*, choice: Choice) -> Answer:
    """Count angles, gates and depth, the number of gates on the longest path.

    Examples:

      qpeft circuits count
    """
    ansatz, _ = choice.circuit()
    gates = list(ansatz.gates())
    counts = {"n_angles": ansatz.n_angles, "gates": dict(Counter(gate.name for gate in gates))}
    counts |= {
        "two_qubit_gates": sum(len(gate.wires) == 2 for gate in gates),
        "depth": depth(ansatz),
    }
    return Answer({**_size(ansatz), **counts})


@command
def export(
    *,
    choice: Choice,
    out: Path | None = option(None, "File to write. Default: standard output.", metavar="FILE"),
) -> Answer:
    """Export a circuit to OpenQASM 3, with the angles of an adapter or with free angles.

    Qiskit reads it with qasm3.loads. Circuits of QAA start in the state |0...0> here, without their
    input.

    Examples:

      qpeft circuits export --n-qubits 4 --n-layers 2
      qpeft circuits export --adapter run --out circuit.qasm
    """
    from qpeft.circuits import to_openqasm
    from qpeft.files import write_text
    from qpeft_lab.files import output_file

    target = None if out is None else output_file(out)
    ansatz, angles = choice.circuit()
    text = to_openqasm(ansatz, angles)
    if target is None:
        return Answer(
            {**_size(ansatz), "text": text},
            lambda console: console.out(text.rstrip(), highlight=False),
        )
    write_text(target, text)
    return Answer({**_size(ansatz), "out": out})


def circuits() -> None:
    """Draw circuits, count their gates, and export them to OpenQASM 3."""


def group() -> typer.Typer:
    """The commands of `qpeft circuits`."""
    return application((draw, count, export), circuits, no_args_is_help=True)


def _size(ansatz: Ansatz) -> dict[str, Any]:
    return {"ansatz": ansatz.name, "n_qubits": ansatz.n_qubits, "n_layers": ansatz.n_layers}


def depth(ansatz: Ansatz) -> int:
    """Number of gates on the longest path through the circuit."""
    longest = [0] * ansatz.n_qubits  # path to each wire
    for gate in ansatz.gates():
        step = 1 + max(longest[wire] for wire in gate.wires)
        for wire in gate.wires:
            longest[wire] = step
    return max(longest)
