"""Files that the settings of a run name: code of a user, FILE.py:NAME, and a frame file. Recognize and hash them.

Code is executed only for names given by a user in a call, a command or a study file, never for those in a checkpoint.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from qpeft.errors import ConfigError
from qpeft.files import file_hash

FRAMES = "frames"  # the field of a method's settings that names a frame file


def is_file(name: Any) -> bool:
    """Whether `name` is a text of the form FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def without_folder(name: str) -> str:
    """FILE.py:NAME without the folder of the file, which may be moved; other names unchanged."""
    return Path(name).name if is_file(name) else name


def without_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, without the folders of the files in them."""
    return {
        name: Path(value).name if name == FRAMES and isinstance(value, str) else without_folder(value)
        for name, value in values.items()
    }


def names_in(method: Any, settings: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, str]:
    """Each FILE.py:NAME of a run, under `method`, `ansatz` and `backend`: its method, and fields of its settings."""
    named = {"method": method, "ansatz": settings.get("ansatz"), "backend": backend.get("backend")}
    return {part: name for part, name in named.items() if is_file(name)}


def file_hashes(method: Any, settings: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files of `names_in`, and of the frame file under `frames`.

    Raises ConfigError if a file does not exist.
    """
    found = {part: file_hash(_path(name)) for part, name in names_in(method, settings, backend).items()}
    if isinstance(frames := settings.get(FRAMES), str):
        path = Path(frames).expanduser()
        if not path.is_file():
            raise ConfigError(f"there is no frame file {path}; make one with qpeft frames, or restore it")
        found[FRAMES] = file_hash(path)
    return found


def execute(name: str, what: str) -> ModuleType:
    """The module in the file of FILE.py:NAME. Its code is executed, unless the module is imported already.

    Raises ConfigError, which begins with `what` and the name, if there is no such file or its code raises an error.
    """
    path = _path(name, what).resolve()
    with errors_as(f"{what} {name}:"):
        return _module(path)


@contextmanager
def errors_as(title: str, *others: type[Exception]) -> Iterator[None]:
    """Whatever a user's code raises here, but Ctrl-C and `others`, becomes a ConfigError that begins with `title`."""
    try:
        yield
    except (KeyboardInterrupt, *others):
        raise
    except BaseException as error:  # SystemExit would end the command with the exit code of a success
        remedy = "; remove the call of sys.exit" if isinstance(error, SystemExit) else ""
        raise ConfigError(f"{title} {type(error).__name__}: {error}{remedy}") from error


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
