"""Fine-tuning methods: one folder each, one record each, and the table of all records.

A method of your own is a `Method` in a file of yours, see `examples/own_method.py`. All names that such a file needs
are in `__init__.pyi` and imported when first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from qpeft.lazy import lazy_names


class _PeftFirst(MetaPathFinder, Loader):
    """Imports peft before any module here that needs it, also when unpickling imports one directly.

    The import of peft registers all methods (`qpeft.__init__`), so none of their modules may be partly executed then.
    A module that was imported by this is not executed a second time: its classes exist once.
    """

    _light = ("method", "registry", "stock", "settings")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        is_folder = parent == __name__ and (Path(__file__).parent / name).is_dir()
        if is_folder or name in self._light or not parent.startswith(__name__) or "peft" in sys.modules:
            return None
        import_module("peft")
        if (module := sys.modules.get(fullname)) is not None:
            module.__spec__ = ModuleSpec(fullname, self, loader_state=module.__spec__)
        return module and module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _PeftFirst())

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
