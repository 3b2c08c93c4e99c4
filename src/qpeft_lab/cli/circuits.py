"""`qpeft circuits draw | count | export`: a circuit as a drawing, as counts, or as OpenQASM 3."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError, needs
from qpeft.user_code import is_file
from qpeft_lab.cli.adapters import find_adapter, use_files
from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.console import Answer, facts, line, table, working
from qpeft_lab.cli.options import Fields

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
    """Count angles, gates and depth, before and after transpiling to three device topologies.

    The depth is the number of gates on the longest path. Qiskit's default passes transpile the circuit, with free
    angles, to the gates rz, sx, x, cx. The heavy-hex lattice has 115 qubits.

    Examples:

      qpeft circuits count
      qpeft circuits count --ansatz square --n-qubits 10 --n-layers 1 --json
    """
    ansatz, _ = _circuit(chosen)
    try:
        with working("Transpiling"):
            sizes, missing = transpiled_sizes(ansatz), ""
    except ConfigError as error:
        sizes, missing = None, str(error)
    gates = dict(Counter(gate.name for gate in ansatz.gates()))
    pairs = sum(len(gate.wires) == 2 for gate in ansatz.gates())
    counts = {"n_angles": ansatz.n_angles, "gates": gates, "two_qubit_gates": pairs, "depth": depth(ansatz)}

    def show(console: Any) -> None:
        console.print(f"{ansatz.name}, n_qubits={ansatz.n_qubits}, n_layers={ansatz.n_layers}\n", style="bold")
        kinds = ", ".join(f"{name} {n:,}" for name, n in gates.items())
        rows = [("angles", ansatz.n_angles, ""), ("gates", sum(gates.values()), kinds), ("two-qubit gates", pairs, "")]
        console.print(facts([*rows, ("depth", counts["depth"], "gates on the longest path")]), "", sep="\n")
        if sizes is None:
            line(console, missing)
            return
        lines = [(name, *(f"{n:,}" for n in size.values())) for name, size in sizes.items()]
        console.print(table(("transpiled to rz, sx, x, cx", "depth", "two-qubit gates"), lines))

    return Answer({**_size(ansatz), **counts, "transpiled": sizes}, show)


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
    return Answer({**_size(ansatz), "out": out}, lambda console: line(console, f"Written to {out}."))


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
    from qpeft_lab.user_files import named_ansatz

    choice = Choice(**chosen)
    check_fields(choice)
    if choice.adapter is None:
        return Ansatz(named_ansatz(choice.ansatz), choice.n_qubits, choice.n_layers), None
    if is_file(choice.ansatz):
        use_files(None, choice.ansatz)
    elif chosen.keys() & {"ansatz", "n_qubits", "n_layers"}:
        raise ConfigError(
            "--adapter determines the circuit; leave out --ansatz, --n-qubits and --n-layers, apart from --ansatz "
            "FILE.py:NAME for an adapter with an ansatz of your own"
        )
    with working("Reading the adapter"):
        from qpeft_lab.diagnose.adapters import Adapter

        folder = find_adapter(choice.adapter)
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


def transpiled_sizes(ansatz: Ansatz) -> dict[str, dict[str, int]]:
    """`depth` and `two_qubit_gates` by coupling ("all-to-all", "line", "heavy-hex") in the gates rz, sx, x, cx.

    Transpiled by Qiskit's default pass manager with a fixed seed and free angles: one result for all angles. Raises
    ConfigError if Qiskit is missing.
    """
    from qpeft.circuits import to_qiskit

    with needs("the size after transpiling", "Qiskit"):
        from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
    n_qubits = ansatz.n_qubits
    distance = 7  # of the heavy-hex lattice: 115 qubits, similar to existing devices
    while (5 * distance**2 - 2 * distance - 1) // 2 < n_qubits:
        distance += 2
    couplings = {
        "all-to-all": None,
        "line": CouplingMap.from_line(n_qubits),
        "heavy-hex": CouplingMap.from_heavy_hex(distance),
    }
    sizes = {}
    for name, coupling in couplings.items():
        gates = ["rz", "sx", "x", "cx"]
        passes = generate_preset_pass_manager(basis_gates=gates, coupling_map=coupling, seed_transpiler=0)
        found = passes.run(to_qiskit(ansatz))
        sizes[name] = {"depth": found.depth(), "two_qubit_gates": found.num_nonlocal_gates()}
    return sizes
