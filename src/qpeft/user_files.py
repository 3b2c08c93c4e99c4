"""Code of a user, named FILE.py:NAME: recognize such a name, hash its file, execute it.

For names given by a user in a call, a command or a study file; never for names in a checkpoint.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from qpeft.errors import ConfigError
from qpeft.files import file_hash


def is_file(name: Any) -> bool:
    """Whether `name` is a text of the form FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def without_folder(name: str) -> str:
    """FILE.py:NAME without the folder of the file, which may be moved; other names unchanged."""
    return Path(name).name if is_file(name) else name


def without_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, without the folders of the files in them."""
    return {name: without_folder(value) for name, value in values.items()}


def names_in(method: Any, settings: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, str]:
    """Each FILE.py:NAME of a run, under `method`, `ansatz` and `backend`: its method, and fields of its settings."""
    named = {"method": method, "ansatz": settings.get("ansatz"), "backend": backend.get("backend")}
    return {part: name for part, name in named.items() if is_file(name)}


def file_sha256(name: str) -> str:
    """SHA-256 of the file of FILE.py:NAME. Raises ConfigError if there is no such file."""
    return file_hash(_path(name))


def execute(name: str, what: str) -> ModuleType:
    """The module in the file of FILE.py:NAME. Its code is executed, unless the module is imported already.

    Raises ConfigError, which begins with `what` and the name, if there is no such file or its code raises an error.
    """
    path = _path(name, what).resolve()
    try:
        return _module(path)
    except Exception as error:  # raised by the user's file
        raise ConfigError(f"{what} {name}: {type(error).__name__}: {error}") from error


def _path(name: str, what: str = "") -> Path:
    path = Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what} {name}: the file {path} does not exist".lstrip())
    return path


def _module(path: Path) -> ModuleType:
    """The module in the file, with the name that `import` would use, unless another module has it."""
    hashed = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    for name in (path.stem, hashed):
        if getattr(sys.modules.get(name), "__file__", None) == str(path):
            return sys.modules[name]
    name = path.stem if _is_free(path) else hashed
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_free(path: Path) -> bool:
    """Whether `import` of the file's name would find this file or nothing."""
    if not path.stem.isidentifier() or path.stem in sys.modules:
        return False
    found = find_spec(path.stem)
    return found is None or found.origin == str(path)
