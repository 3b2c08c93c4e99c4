"""Paths that a user names: of models and data, of code, FILE.py:NAME, and of a frame file."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError, QpeftError
from qpeft.files import file_hash
from qpeft.user_code import code_path, execute, is_file

FRAMES = "frames"  # the field of a method's settings that names a frame file


def looks_like_path(name: str) -> bool:
    """True if a name can only be a path: it starts like one, or has more slashes than a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def explain_missing(name: str) -> str:
    """What is missing, where, and the nearest names: `/data has no 'trian.txt'; similar:
    train.txt`.
    """
    path = Path(name).expanduser().absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    wanted = path.relative_to(folder).parts[0]
    near = get_close_matches(wanted, [entry.name for entry in folder.iterdir()], n=3, cutoff=0.5)
    return f"{folder} has no {wanted!r}" + (f"; similar: {', '.join(near)}" if near else "")


def without_folders(value: Any, name: str = "") -> Any:
    """`value`, the field `name`, without the folders of the files in it, which may be moved."""
    if isinstance(value, Mapping):
        return {key: without_folders(item, key) for key, item in value.items()}
    return (
        Path(value).name if is_file(value) or (name == FRAMES and isinstance(value, str)) else value
    )


def file_hashes(
    method: Any, settings: Mapping[str, Any], backend: Mapping[str, Any]
) -> dict[str, str]:
    """SHA-256 of the files of a run, FILE.py:NAME of its method, ansatz and backend with the modules
    next to FILE.py that it imports, and its frame file.

    Raises ConfigError if a file does not exist.
    """
    named = {"method": method, "ansatz": settings.get("ansatz"), "backend": backend.get("backend")}
    hashes = {part: _code_hash(code_path(name)) for part, name in named.items() if is_file(name)}
    if isinstance(frames := settings.get(FRAMES), str):
        path = Path(frames).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"there is no frame file {path}; make one with qpeft frames, or restore it"
            )
        hashes[FRAMES] = file_hash(path)
    return hashes


def circuit_hashes(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the gates of a user's ansatz with up to 3 layers on up to 24 qubits; the code may
    read them from files that `file_hashes` does not know.

    Raises ConfigError as `named_ansatz`, which executes the file.
    """
    ansatz = str(settings.get("ansatz"))
    if not is_file(ansatz):
        return {}
    from qpeft.circuits.ansatz import Ansatz

    name = named_ansatz(ansatz)
    gates: list[Any] = []
    for size in product(range(1, 25), (1, 2, 3)):
        try:
            gates.append(list(Ansatz(name, *size).gates()))
        except QpeftError:
            gates.append(None)  # an ansatz need not have every size
    return {"gates": hashlib.sha256(repr(gates).encode()).hexdigest()}


def _code_hash(path: Path) -> str:
    """SHA-256 of a user's file, and of the modules in its folder that it imports."""
    modules = _modules(path)
    if not modules:
        return file_hash(path)
    parts = [f"{file.relative_to(path.parent)} {file_hash(file)}" for file in (path, *modules)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _modules(path: Path) -> list[Path]:
    """The modules in the folder of `path`, or below, that its code imports, and those that they
    import. Nothing is executed.
    """
    found = [path]
    for file in found:  # which grows
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # its execution raises a clear error
        for place in _imported(tree, file, path.parent):
            for candidate in (place.with_suffix(".py"), place / "__init__.py"):
                is_below = candidate.is_relative_to(path.parent)
                if is_below and candidate.is_file() and candidate not in found:
                    found.append(candidate)
    return sorted(found[1:])


def _imported(tree: ast.AST, file: Path, folder: Path) -> Iterator[Path]:
    """Where the modules that this code imports are, if they are in `folder`."""
    for node in ast.walk(tree):
        names: list[str] = []
        start = folder
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # relative to the package of the file
                start = file.parents[node.level - 1]
            of = f"{node.module}." if node.module else ""
            names = [f"{of}{alias.name}" for alias in node.names]  # a module, or a name in one
        for name in names:
            parts = name.split(".")
            for n in range(1, len(parts) + 1):  # the packages too
                yield start.joinpath(*parts[:n])


def named_ansatz(name: str) -> str:
    """`name`; of FILE.py:NAME the NAME, after the execution of the file, which registers it.

    For names given by a user in a command or a study file; never for names in a checkpoint.

    Raises ConfigError if the file does not exist, raises an error, or does not register NAME.
    """
    if not is_file(name):
        return name
    from qpeft.circuits.ansatz import OWN_ANSATZE, ansatz_names

    execute(name, "ansatz")
    wanted = name.rpartition(":")[2]
    registered = [other for other in ansatz_names() if other not in OWN_ANSATZE]
    if wanted not in registered:
        raise ConfigError(
            f"ansatz {name}: the file does not register {wanted!r}; it registers"
            f" {', '.join(registered)}"
        )
    return wanted
