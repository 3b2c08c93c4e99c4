"""Code of a user, FILE.py:NAME: a method, an ansatz or a backend.

Code is executed only for names given by a user in a call, a command or a study file, never for
those in a checkpoint.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from qpeft.errors import ConfigError

_used: dict[Path, bytes] = {}  # the content of the files that were executed, or imported


def is_file(name: Any) -> bool:
    """Whether `name` is a text of the form FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


@contextmanager
def errors_as(title: str, *others: type[Exception]) -> Iterator[None]:
    """Whatever a user's code raises here, but Ctrl-C and `others`, becomes a ConfigError that
    begins with `title`.
    """
    try:
        yield
    except (KeyboardInterrupt, *others):
        raise
    except BaseException as error:
        # SystemExit would end the command with the exit code of a success
        remedy = "; remove the call of sys.exit" if isinstance(error, SystemExit) else ""
        raise ConfigError(f"{title} {type(error).__name__}: {error}{remedy}") from error


def code_path(name: str, what: str = "") -> Path:
    """The file of FILE.py:NAME. Raises ConfigError, which begins with `what` and the name, if it
    does not exist.
    """
    path = Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what} {name}: the file {path} does not exist".lstrip())
    return path


def execute(name: str, what: str) -> ModuleType:
    """The module in the file of FILE.py:NAME, with the name that `import` would use, unless another
    module has it.

    Its code is executed, unless the module is imported already. Raises ConfigError, which begins
    with `what` and the name, if there is no such file, its code raises an error, or it was changed
    since it was used first.
    """
    path = code_path(name, what).resolve()
    content = path.read_bytes()
    hashed = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    for known in (path.stem, hashed):
        if getattr(sys.modules.get(known), "__file__", None) == str(path):
            if _used.setdefault(path, content) != content:
                raise ConfigError(
                    f"{what} {name}: {path.name} has changed since this process executed it; start"
                    " Python again"
                )
            return sys.modules[known]
    _used[path] = content
    with errors_as(f"{what} {name}:"):
        spec: Any = spec_from_file_location(path.stem if _is_free(path) else hashed, path)
        sys.modules[spec.name] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
    return module


def _is_free(path: Path) -> bool:
    """Whether `import` of the file's name would find this file or nothing."""
    if not path.stem.isidentifier() or path.stem in sys.modules:
        return False
    importable = find_spec(path.stem)
    return importable is None or importable.origin == str(path)
