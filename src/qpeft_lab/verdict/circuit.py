"""The circuit that a user names, as an ansatz that every process of a study can load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from qpeft.circuits import (
    Ansatz,
    exact_probabilities,
    from_openqasm,
    from_pennylane,
    from_qiskit,
)
from qpeft.circuits.ansatz import OWN_ANSATZE, ansatz_names
from qpeft.errors import ConfigError, InputError
from qpeft.files import write_text
from qpeft.user_code import execute, is_file
from qpeft_lab.verdict import PROTOCOL

MOST_QUBITS = 16
OWN_FILE = "own_circuit.py"  # of a circuit of one size
_ROUNDING = 1e-12  # of probabilities

_FILE = '''"""The circuit of this study. Every process of the study runs this file."""

from qpeft.circuits import Gate, register_ansatz
from qpeft.circuits.ansatz import ansatz_names

SHAPE = {shape}  # of the angles, in radians
GATES = [
{gates}
]

if "{name}" not in ansatz_names():  # else another study of this circuit registered it
    register_ansatz("{name}", lambda *_: SHAPE, lambda *_: [GATES])
'''


class Circuit(NamedTuple):
    """A circuit of a study.

    `fixed` is an ansatz of one size, such as a QNode; without it QPA chooses the number of qubits.
    """

    label: str
    ansatz: str  # for the setting `ansatz`
    fixed: Ansatz | None = None


def circuit_of(name: str, shape: tuple[int, ...] | None, folder: Path) -> Circuit:
    """The circuit `name`: an ansatz of qpeft, FILE.py:NAME, or a file of OpenQASM.

    NAME is an ansatz that the file registers, an `Ansatz`, a QNode or a function that queues gates,
    with `shape`, the shape of its angles, or a Qiskit circuit. A circuit of one size is written to
    `folder` as a file, which every process of the study runs.

    Raises:
        InputError: there is no such circuit, or QPA cannot use it; the message says why.
    """
    if not is_file(name):
        _refuse_shape(name, shape)
    path = Path(name).expanduser()
    if path.suffix in (".qasm", ".qasm3"):
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a file of OpenQASM 2 or 3")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a text in UTF-8: {error}") from error
        return _kept(from_openqasm(text), path.stem, folder)
    if not is_file(name):
        if name not in ansatz_names():
            raise ConfigError(
                f"there is no circuit {name!r}. Give {', '.join(ansatz_names())}; FILE.py:NAME of an"
                " ansatz, a QNode or a Qiskit circuit; or a file of OpenQASM that ends in .qasm"
            )
        return Circuit(name, name)
    own_name = name.rpartition(":")[2]
    module = execute(name, "circuit")
    if own_name in set(ansatz_names()) - set(OWN_ANSATZE):
        _refuse_shape(name, shape)
        return Circuit(own_name, name)
    value = getattr(module, own_name, None)
    if value is None:
        raise ConfigError(_absent(module, path))
    return _kept(_converted(name, value, shape), own_name, folder)


@contextmanager
def removed_if_refused(folder: Path) -> Iterator[None]:
    """Within: an error removes what was written for a study that has not begun: the folder, or in
    one that was there the file of a circuit.
    """
    had_folder = folder.exists()
    path = folder / OWN_FILE
    was_there = path.exists()
    try:
        yield
    except BaseException:
        has_begun = (folder / PROTOCOL).exists()  # of another process, if it was not there
        if not had_folder and not has_begun:
            shutil.rmtree(folder, ignore_errors=True)
        elif had_folder and not was_there:
            path.unlink(missing_ok=True)
        raise


def _refuse_shape(name: str, shape: tuple[int, ...] | None) -> None:
    """Raise ConfigError if the angles of a circuit that has a shape are given another one."""
    if shape is not None:
        raise ConfigError(
            f"--shape is for a QNode or a function, and {name} has its own angles; leave it out"
        )


def _absent(module: ModuleType, name: Path) -> str:
    """What a file has instead of a circuit."""
    file, _, own_name = str(name).rpartition(":")
    registered = [other for other in ansatz_names() if other not in OWN_ANSATZE]
    others = [
        other
        for other, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ or hasattr(value, "num_qubits")
    ]
    circuits = ", ".join([*others, *registered]) or "no circuit"
    return f"the file {file} neither has nor registers {own_name!r}; it has {circuits}"


def _converted(name: str, value: Any, shape: tuple[int, ...] | None) -> Ansatz:
    if isinstance(value, Ansatz) or hasattr(value, "num_qubits"):  # Qiskit's
        _refuse_shape(name, shape)
        return value if isinstance(value, Ansatz) else from_qiskit(value)
    if not callable(value):
        raise ConfigError(
            f"{name} is a {type(value).__name__}; give a QNode, a function that queues gates, a"
            " Qiskit circuit, or an ansatz"
        )
    if shape is None:
        raise ConfigError(
            f"{name} has one argument, its angles; give their shape, such as --shape 2,4"
        )
    return from_pennylane(value, shape)


def _kept(ansatz: Ansatz, label: str, folder: Path) -> Circuit:
    """The circuit of one size, as a file in `folder`.

    Raises ConfigError if QPA cannot use it, or the folder has the file of another one.
    """
    if not ansatz.n_angles:
        raise ConfigError(f"the circuit {label} has no parameters, so there is nothing to train")
    if not 2 <= ansatz.n_qubits <= MOST_QUBITS:
        raise ConfigError(
            f"the circuit {label} has {ansatz.n_qubits} qubits; from 2 to {MOST_QUBITS} can be"
            " simulated in training"
        )
    if idle_angles(ansatz) == ansatz.n_angles:
        raise ConfigError(
            f"no angle of the circuit {label} changes its probabilities, which generate the adapter,"
            " so trained and frozen angles would be the same; add gates behind them that mix states,"
            " such as RY"
        )
    gates = "\n".join(f"    {gate!r}," for gate in ansatz.gates())
    digest = sha256(f"{ansatz.angle_shape}{gates}".encode()).hexdigest()
    name = f"own_{digest[:12]}"  # a process may run several of these files
    text = _FILE.format(shape=repr(ansatz.angle_shape), gates=gates, name=name)
    path = folder / OWN_FILE
    if not path.exists():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        raise ConfigError(f"{path} is another circuit than {label}; name another --out")
    return Circuit(label, f"{path}:{name}", ansatz)


@cache  # a refusal and a note need it, and a circuit of 16 qubits takes seconds
def idle_angles(ansatz: Ansatz) -> int:
    """The number of angles that change no probability, such as those of RZ gates at the end."""
    stream = torch.Generator().manual_seed(0)
    angles = 2 * torch.pi * torch.rand(ansatz.angle_shape, generator=stream, dtype=torch.float64)
    probabilities = exact_probabilities(ansatz, angles)
    n_idle = 0
    for index in range(ansatz.n_angles):
        moved = angles.clone()
        moved.view(-1)[index] += 1.0
        change = (exact_probabilities(ansatz, moved) - probabilities).abs().max()
        n_idle += int(change < _ROUNDING)
    return n_idle
