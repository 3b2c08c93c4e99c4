"""`qpeft circuits draw | count | export`: a circuit as a drawing, as counts, or in other formats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.checks import check_fields
from qpeft.cli.adapters import CircuitOption, find_adapter, use_files
from qpeft.cli.command import application, command
from qpeft.cli.console import Answer, facts, table, working
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.user_files import is_file

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.circuits import Ansatz

_MOST_ROTATIONS = 10_000
_MOST_TRANSPILED = 256  # qubits; transpiling more takes minutes
_FORMATS = ("openqasm", "pennylane", "qiskit")


@dataclass(kw_only=True)
class CircuitOptions:
    """An ansatz and its size."""

    ansatz: str = field(
        default="ry_ladder",
        metadata={
            "help": "ry_ladder is QPA's default, two_design Quantum-PEFT's; square, qaa and rxyz are QAA's. "
            "FILE.py:NAME is an ansatz of your own, which the file registers."
        },
    )
    n_qubits: int = field(default=7, metadata={"help": "Number of qubits.", "at_most": 1000})
    n_layers: int = field(default=8, metadata={"help": "Number of layers.", "at_most": 10_000})


Chosen = Annotated[dict[str, Any], Fields(CircuitOptions, panel="Circuit")]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Run folder or compact adapter: its circuit with the trained angles, instead of an ansatz.",
        rich_help_panel="Circuit",
    ),
]


@command
def draw(
    chosen: Chosen,
    adapter: AdapterOption = None,
    circuit: CircuitOption = 1,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=20, help="Columns; layers that do not fit are omitted. Default: width of the terminal."
        ),
    ] = None,
) -> Answer:
    """Draw a circuit as text; with an adapter, also list its angles.

    Examples:

      qpeft circuits draw --n-qubits 4 --n-layers 2
      qpeft circuits draw --ansatz two_design --n-qubits 5 --n-layers 2 --width 200
      qpeft circuits draw --ansatz own_ansatz.py:cz_ring --n-qubits 4 --n-layers 2
      qpeft circuits draw --adapter run
    """
    shown = _circuit(chosen, adapter, circuit)
    return Answer(
        {**_described(shown), "drawing": shown.ansatz.draw(width or 100)},
        lambda console: _show_drawing(console, shown.ansatz.draw(width or console.width), shown),
    )


@command
def count(chosen: Chosen, adapter: AdapterOption = None) -> Answer:
    """Count angles, gates and depth, before and after transpiling to three device topologies.

    The depth is the number of gates on the longest path. Qiskit's default passes transpile the circuit, with free
    angles, to the gates rz, sx, x, cx. The heavy-hex lattice has 115 qubits.

    Examples:

      qpeft circuits count
      qpeft circuits count --ansatz square --n-qubits 10 --n-layers 1 --json
    """
    shown = _circuit(chosen, adapter)
    ansatz = shown.ansatz
    with working("Transpiling"):
        sizes, missing = _transpiled(ansatz)
    gates = dict(Counter(gate.name for gate in ansatz.gates()))
    two_qubit_gates = sum(len(gate.wires) == 2 for gate in ansatz.gates())
    data = {
        **_described(replace(shown, angles=None, number=None)),
        "n_angles": ansatz.n_angles,
        "gates": gates,
        "two_qubit_gates": two_qubit_gates,
        "depth": ansatz.depth,
        "transpiled": sizes,
    }
    return Answer(data, lambda console: _show_counts(console, data, missing))


@command
def export(
    chosen: Chosen,
    adapter: AdapterOption = None,
    circuit: CircuitOption = 1,
    form: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help=f"OpenQASM 3 or a Python file. One of {', '.join(_FORMATS)}."),
    ] = "openqasm",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write. Default: standard output.")] = None,
) -> Answer:
    """Export a circuit to OpenQASM 3, PennyLane or Qiskit, with the angles of an adapter or with free angles.

    The exported file does not need qpeft. It contains one circuit: of several, the one that --circuit chooses. A Python
    file defines probabilities(angles) in qpeft's order of basis states: wire 0 is the most significant bit. Circuits of
    QAA start in the state |0...0> here, without their input.

    Examples:

      qpeft circuits export --n-qubits 4 --n-layers 2
      qpeft circuits export --adapter run --format qiskit --out circuit.py
      qpeft circuits export --adapter run --circuit 2
    """
    if form not in _FORMATS:
        raise ConfigError(f"unknown format '{form}'; choose one of {', '.join(_FORMATS)}")
    from qpeft.circuits.exports import to_openqasm, to_python
    from qpeft.files import output_file, write_text

    target = None if out is None else output_file(out)

    shown = _circuit(chosen, adapter, circuit)
    ansatz, angles = shown.ansatz, shown.angles
    text = to_openqasm(ansatz, angles) if form == "openqasm" else to_python(ansatz, form, angles)
    if shown.which:
        text = f"{'//' if form == 'openqasm' else '#'} circuit {shown.which} of the adapter\n{text}"
    if target is not None:
        write_text(target, text)
    data = {**_described(shown), "format": form, "out": out, "text": text if out is None else None}
    return Answer(data, lambda console: _show_export(console, text, out, shown))


def circuits() -> None:
    """Draw circuits, count their gates, and export them to other formats.

    Examples:

      qpeft circuits draw --n-qubits 4
      qpeft circuits count
      qpeft circuits export --adapter run --format pennylane --out circuit.py
    """


def group() -> typer.Typer:
    """The commands of `qpeft circuits`."""
    return application(circuits, (draw, count, export), no_args_is_help=True)


@dataclass(frozen=True)
class _Shown:
    """An ansatz and, for an adapter, the angles of its circuit `number`, float64 (L, N)."""

    ansatz: Ansatz
    angles: Any = None
    number: int | None = None
    n_circuits: int | None = None  # of the adapter
    which: str = ""  # of several circuits: "1 of 3"


def _circuit(chosen: dict[str, Any], adapter: Path | None, number: int = 1) -> _Shown:
    """The circuit of the options, or circuit `number` of an adapter."""
    from qpeft.circuits import Ansatz
    from qpeft.circuits.ansatz import named_ansatz

    if adapter is not None and is_file(chosen.get("ansatz")):
        use_files(None, chosen["ansatz"])
        chosen = {name: value for name, value in chosen.items() if name != "ansatz"}
    if adapter is None:
        size = CircuitOptions(**chosen)
        check_fields(size)
        if size.n_qubits * size.n_layers > _MOST_ROTATIONS:
            raise ConfigError(
                f"{size.n_qubits} qubits with {size.n_layers} layers are too many: their product must be at most "
                f"{_MOST_ROTATIONS:,}; give fewer --n-layers"
            )
        if number != 1:
            raise ConfigError("--circuit chooses one of the circuits of an adapter; give --adapter, or leave it out")
        return _Shown(Ansatz(named_ansatz(size.ansatz), size.n_qubits, size.n_layers))
    if chosen:
        raise ConfigError(
            "--adapter determines the circuit; leave out --ansatz, --n-qubits and --n-layers, apart from --ansatz "
            "FILE.py:NAME for an adapter with an ansatz of your own"
        )
    with working("Reading the adapter"):
        return _trained_circuit(find_adapter(adapter), number)


def _trained_circuit(folder: Path, number: int) -> _Shown:
    from qpeft.diagnostics.target import of_folder

    target = of_folder(folder)
    if target.n_circuits:
        target = target.with_circuit(number)
    if (circuit := target.circuit) is None:
        raise ConfigError(f"{folder}: {target.no_circuit}; give another adapter, or pass --ansatz")
    return _Shown(circuit.ansatz, circuit.angles.numpy(), number, target.n_circuits, target.which)


def _described(shown: _Shown) -> dict[str, Any]:
    ansatz = shown.ansatz
    size = {"ansatz": ansatz.name, "n_qubits": ansatz.n_qubits, "n_layers": ansatz.n_layers}
    angles = None if shown.angles is None else shown.angles.tolist()
    return {**size, "circuit": shown.number, "n_circuits": shown.n_circuits, "angles": angles}


def _transpiled(ansatz: Ansatz) -> tuple[dict[str, dict[str, int]] | None, str]:
    """Sizes by device topology; or None, and what is missing to compute them."""
    from qpeft.circuits.exports import transpiled_sizes

    if ansatz.n_qubits > _MOST_TRANSPILED:
        return None, f"No sizes after transpiling: they are computed for at most {_MOST_TRANSPILED} qubits."
    try:
        return transpiled_sizes(ansatz), ""
    except ConfigError as error:
        return None, str(error)


def _show_drawing(console: Console, drawing: str, shown: _Shown) -> None:
    if shown.which:
        console.print(f"circuit {shown.which}; they differ in their angles, and --circuit chooses another\n")
    console.print(drawing, soft_wrap=True)
    if shown.angles is not None:
        shape = shown.angles.shape
        what = "one line for each layer, one column for each wire" if len(shape) == 2 else f"of shape {shape}"
        console.print(f"\nangles in radians, {what}\n")
        for row in shown.angles.reshape(-1, shape[-1]):
            console.print("".join(f"{angle:9.4f}" for angle in row), soft_wrap=True)


def _show_counts(console: Console, data: dict[str, Any], missing: str) -> None:
    several = f", each of {data['n_circuits']:,} circuits" if (data["n_circuits"] or 1) > 1 else ""
    size = f"{data['ansatz']}, n_qubits={data['n_qubits']}, n_layers={data['n_layers']}{several}"
    console.print(f"{size}\n", style="bold")
    kinds = ", ".join(f"{name} {n:,}" for name, n in data["gates"].items())
    rows = [
        ("angles", f"{data['n_angles']:,}", ""),
        ("gates", f"{sum(data['gates'].values()):,}", kinds),
        ("two-qubit gates", f"{data['two_qubit_gates']:,}", ""),
        ("depth", f"{data['depth']:,}", "gates on the longest path"),
    ]
    console.print(facts(rows))
    if missing:
        console.print(f"\n{missing}", soft_wrap=True)
        return
    lines = [(name, *(f"{n:,}" for n in size.values())) for name, size in data["transpiled"].items()]
    console.print()
    console.print(table(("transpiled to rz, sx, x, cx", "depth", "two-qubit gates"), lines))


def _show_export(console: Console, text: str, out: Path | None, shown: _Shown) -> None:
    if out is None:
        console.out(text, end="", highlight=False)
    else:
        which = f"Circuit {shown.which} is written" if shown.which else "Written"
        console.print(f"{which} to {out}.", soft_wrap=True)
